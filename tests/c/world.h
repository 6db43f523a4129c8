/* SPDX-License-Identifier: MIT */
/* Worlds without processes: the facts of all ranks, made up from those of one. */
#ifndef LOFI_TESTS_WORLD_H
#define LOFI_TESTS_WORLD_H

#include "nodes/facts.h"
#include "test.h"

static inline lofi_status world_gather(void *ctx, const void *mine, size_t bytes, void *all)
{
    const struct lofi__facts *facts = mine;
    struct lofi__facts *list = all;

    if (ctx != NULL || bytes != sizeof *facts) return LOFI_SYSTEM;
    for (int rank = 0; rank < facts->world_size; rank++) {
        list[rank] = *facts;
        list[rank].rank = rank;
    }
    return LOFI_OK;
}

/* What `rank` sees in a world of nodes of `node_size` ranks. */
static inline lofi_topology *world_topology(int rank, int world_size, int node_size)
{
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    lofi_topology *topology = NULL;

    options.rank = rank;
    options.world_size = world_size;
    options.node_size = node_size;
    ASSERT(lofi_topology_create(&options, world_gather, NULL, &topology) == LOFI_OK);
    return topology;
}

/* The group of `count` ranks as `rank` sees it. */
static inline lofi_group *world_group(int rank, int world_size, int node_size, const int *ranks,
                                      int count)
{
    lofi_topology *topology = world_topology(rank, world_size, node_size);
    lofi_group *group = NULL;

    ASSERT(lofi_group_create(topology, ranks, count, &group) == LOFI_OK);
    lofi_topology_destroy(topology);
    return group;
}

#endif /* LOFI_TESTS_WORLD_H */
