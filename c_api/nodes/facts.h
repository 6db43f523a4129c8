/* SPDX-License-Identifier: MIT */
/*
 * Every rank tells these facts to every other before they agree on the nodes.
 *
 * One struct of a fixed size for all releases: the bootstrap gathers equal sizes only, and ranks
 * of different releases must be able to find out that they are. The numbers are in the byte
 * order of the machine; a rank of the other order fails the check of the magic number.
 */
#ifndef LOFI_COMM_FACTS_H
#define LOFI_COMM_FACTS_H

#include "lofi.h"

#include <assert.h>

#define LOFI__FACTS_MAGIC UINT32_C(0x69666f6c) /* "lofi" */
#define LOFI__FACTS_LAYOUT 1

/* The source of a rank's request for a node size. Never renumbered: it is on the wire. */
enum lofi__size_source {
    LOFI__FROM_HOSTS = 0, /* no request: count ranks by host name */
    LOFI__FROM_ARGUMENT = 1,
    LOFI__FROM_LOFI = 2,
    LOFI__FROM_TORCHRUN = 3,
    LOFI__FROM_SLURM = 4,
    LOFI__SOURCE_COUNT = 5
};

struct lofi__facts {
    uint32_t magic;
    uint32_t layout;  /* of this struct; the first three fields stay where they are for ever */
    uint32_t version; /* lofi_version() */
    int32_t rank;
    int32_t world_size;
    int32_t node_size; /* 0: no request */
    int32_t source;    /* enum lofi__size_source */
    int32_t reserved;
    char host[256];
    char settings[1024];
    char problem[512]; /* "" if this rank can start */
    char padding[224];
};
static_assert(sizeof(struct lofi__facts) == 2048, "the size is the same in all releases");

/* "LOFI_NODE_SIZE" and so on, for a valid source. Static storage. */
const char *lofi__source_name(int source);

/* Fills in what this rank has to say. Never fails: what is wrong becomes its problem, which all
 * ranks then return. Reads the environment. */
void lofi__facts_fill(struct lofi__facts *facts, const lofi_topology_options *options);

/* From the facts of all ranks, in rank order, the size of a node. Reads nothing else, so that
 * all ranks come to the same answer or the same sentence. */
lofi_status lofi__facts_agree(const struct lofi__facts *all, int world_size, int *node_size);

#endif /* LOFI_COMM_FACTS_H */
