/* SPDX-License-Identifier: MIT */
/*
 * Finds the ranks that make a node: gather the facts of all ranks, agree, keep three numbers.
 *
 * Nodes are runs of consecutive ranks of one size, so the map from rank to node is a division.
 * A table of arbitrary nodes would allow more shapes, but launchers hand out ranks host by host,
 * and images need equal sizes anyway.
 */
#include "core/error.h"
#include "core/mem.h"
#include "core/options.h"
#include "nodes/facts.h"

#include <string.h>

struct lofi_topology {
    int rank;
    int world_size;
    int node_size;
    int source;
};

/* An error here lies in the program and not in its surroundings; without a rank or a world the
 * other ranks can't be told of it. */
static lofi_status check_options(const lofi_topology_options *options, lofi_allgather_fn allgather,
                                 lofi_topology **out)
{
    if (allgather == NULL || out == NULL) {
        lofi_set_error("lofi_topology_create needs an allgather and a place for the result: one of "
                       "them is NULL");
        return LOFI_INVALID;
    }
    if (options->world_size < 1 || options->rank < 0 || options->rank >= options->world_size) {
        lofi_set_error("there is no rank %d in a world of %d ranks", options->rank,
                       options->world_size);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

static lofi_status gather(lofi_allgather_fn allgather, void *ctx, const struct lofi__facts *mine,
                          struct lofi__facts *all)
{
    unsigned errors = lofi__error_count();
    lofi_status st = allgather(ctx, mine, sizeof *mine, all);

    if (st != LOFI_OK && lofi__error_count() == errors)
        lofi_set_error("the ranks can't be gathered to agree on the nodes: %s (%s)",
                       lofi_status_text(st), lofi_status_name(st));
    return st;
}

lofi_status lofi_topology_create(const lofi_topology_options *given, lofi_allgather_fn allgather,
                                 void *ctx, lofi_topology **out)
{
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    struct lofi__facts mine;
    struct lofi__facts *all = NULL;
    lofi_topology *topology = NULL;
    int node_size = 0;

    lofi_status st =
        lofi__options_read(&options, sizeof options, given, "LOFI_TOPOLOGY_OPTIONS_INIT");
    if (st == LOFI_OK) st = check_options(&options, allgather, out);
    if (st != LOFI_OK) return st;

    /* All memory is taken before the ranks meet: a rank that ran out of it afterwards would be
     * alone in failing. */
    st = LOFI_NO_MEMORY;
    topology = lofi__mem_create(1, sizeof *topology);
    if (topology == NULL) goto done;
    all = lofi__mem_create((size_t)options.world_size, sizeof *all);
    if (all == NULL) goto done;

    lofi__facts_fill(&mine, &options);
    st = gather(allgather, ctx, &mine, all);
    if (st == LOFI_OK) st = lofi__facts_agree(all, options.world_size, &node_size);
    if (st != LOFI_OK) goto done;

    topology->rank = options.rank;
    topology->world_size = options.world_size;
    topology->node_size = node_size;
    topology->source = mine.source;
    *out = topology;
    topology = NULL;
done:
    lofi__mem_destroy(all);
    lofi__mem_destroy(topology);
    return st;
}

void lofi_topology_destroy(lofi_topology *topology)
{
    lofi__mem_destroy(topology);
}

int lofi_topology_rank(const lofi_topology *topology)
{
    return topology->rank;
}

int lofi_topology_world_size(const lofi_topology *topology)
{
    return topology->world_size;
}

int lofi_topology_node_size(const lofi_topology *topology)
{
    return topology->node_size;
}

int lofi_topology_node_count(const lofi_topology *topology)
{
    return topology->world_size / topology->node_size;
}

int lofi_topology_node_of(const lofi_topology *topology, int rank)
{
    if (rank < 0 || rank >= topology->world_size) return -1;
    return rank / topology->node_size;
}

const char *lofi_topology_source(const lofi_topology *topology)
{
    return lofi__source_name(topology->source);
}
