/* SPDX-License-Identifier: MIT */
/* Nodes: which ranks make one, and where a process group lies among them. */
#ifndef LOFI_NODES_H
#define LOFI_NODES_H

#include "lofi/base.h"

LOFI__DECLARATIONS_BEGIN

/* ---- topology: which ranks make a node ------------------------------------------------------- */

/* Nodes are runs of consecutive ranks, all of the same size: node k holds the ranks
 * k * L ... k * L + L - 1. */
typedef struct lofi_topology lofi_topology;

typedef struct lofi_topology_options {
    size_t size;
    int rank;             /* 0 ... world_size - 1 */
    int world_size;       /* >= 1 */
    int node_size;        /* ranks in a node; 0: find out, see lofi_topology_create */
    const char *settings; /* may be NULL. Text that has to be the same on every rank: the other
                             settings of the embedding program. At most 1023 bytes. */
    const char *problem;  /* may be NULL. A sentence: this rank can't start. It becomes the error
                             of every rank, so that none waits for this one. At most 511 bytes. */
} lofi_topology_options;
#define LOFI_TOPOLOGY_OPTIONS_INIT                                                                 \
    {                                                                                              \
        sizeof(lofi_topology_options), 0, 1, 0, NULL, NULL                                         \
    }

/*
 * Finds the nodes and checks that every rank means the same. Collective: all ranks call it, and
 * all return the same status, with the same sentence. Blocks in `allgather` only.
 *
 * The size of a node is, in this order: options->node_size; LOFI_NODE_SIZE; LOCAL_WORLD_SIZE (as
 * torchrun sets it); SLURM_NTASKS_PER_NODE; the number of consecutive ranks with the same host
 * name. An empty variable counts as unset.
 *
 * Errors: LOFI_INVALID when a variable is not a positive decimal integer (names rank, variable
 * and value), when ranks disagree on the size or the settings (names two ranks and what each
 * has), when the world is not divisible by the size, when hosts hold different numbers of ranks
 * or ranks of one host are not consecutive (names the sizes; a size from `node_size` or
 * LOFI_NODE_SIZE may join or split hosts); LOFI_ABI when ranks run different releases (names
 * two); LOFI_CORRUPT when the gathered bytes are not what ranks gave; the status of `allgather`;
 * LOFI_NO_MEMORY. The last two, and options without a valid rank and world, are this rank's own.
 */
lofi_status lofi_topology_create(const lofi_topology_options *options, lofi_allgather_fn allgather,
                                 void *ctx, lofi_topology **out);
void lofi_topology_destroy(lofi_topology *topology);

int lofi_topology_rank(const lofi_topology *topology);
int lofi_topology_world_size(const lofi_topology *topology);
int lofi_topology_node_size(const lofi_topology *topology);  /* L */
int lofi_topology_node_count(const lofi_topology *topology); /* K */
int lofi_topology_node_of(const lofi_topology *topology, int rank);
/* The source of the size: "node_size", "LOFI_NODE_SIZE", "LOCAL_WORLD_SIZE",
 * "SLURM_NTASKS_PER_NODE" or "host names". Static storage. */
const char *lofi_topology_source(const lofi_topology *topology);

/* ---- groups: where a process group lies among the nodes -------------------------------------- */

/* A process group of n ranks. Seen from the calling rank it has l members in the own node
 * (1 <= l <= n) and touches m nodes. The place of a member is its position among the group's
 * members of its own node, in group order. The group is even if every touched node holds the
 * same number of members; then n = m * l, and the image of a member is the member of the own
 * node with the same place. */
typedef struct lofi_group lofi_group;

/* `global_ranks` (borrowed during the call) are the members in group order, `count` of them,
 * distinct, the calling rank among them; NULL with count 0 is the whole world. The group keeps
 * no reference to `topology`. LOFI_INVALID names the rank that is out of range or repeated. */
lofi_status lofi_group_create(const lofi_topology *topology, const int *global_ranks, int count,
                              lofi_group **out);
void lofi_group_destroy(lofi_group *group);

int lofi_group_size(const lofi_group *group);       /* n */
int lofi_group_rank(const lofi_group *group);       /* of the caller, in the group */
int lofi_group_node_count(const lofi_group *group); /* m: nodes touched; 1: inside one node */
int lofi_group_local_size(const lofi_group *group); /* l: members in the own node */
int lofi_group_is_even(const lofi_group *group);    /* 1 or 0 */
/* For a member `rank` of the group (0 ... n - 1): */
int lofi_group_global_rank(const lofi_group *group, int rank);
int lofi_group_place(const lofi_group *group, int rank); /* also: its image, as a place here */
/* Index 0 ... m - 1 of its node among the touched nodes, ascending; and back to the node's number
 * in the world. */
int lofi_group_node_of(const lofi_group *group, int rank);
int lofi_group_node_number(const lofi_group *group, int node_index);
/* The member at `place` of touched node `node_index`; -1 if there is none. */
int lofi_group_member(const lofi_group *group, int node_index, int place);

LOFI__DECLARATIONS_END

#endif /* LOFI_NODES_H */
