/* SPDX-License-Identifier: MIT */
/*
 * The place of a process group among the nodes.
 *
 * Everything a collective asks is worked out once, when the group is made: a group lives as long
 * as the training and is asked at each step. The rejected alternative, to compute places on
 * demand from the list of ranks, walks the list for every call. All tables share one allocation.
 */
#include "core/mem.h"
#include "lofi.h"

struct lofi_group {
    int size;
    int rank;
    int node_count;
    int local_size;
    int is_even;
    /* by member */
    int *global_rank;
    int *node_of; /* index among the touched nodes */
    int *place;
    /* by touched node; first_member has one more entry, the end of the last node */
    int *node_number;
    int *first_member;
    /* members ordered by node, then place: those of node i start at first_member[i] */
    int *member;
    int tables[];
};

static lofi_status check_list(const lofi_topology *topology, const int *global_ranks, int count,
                              lofi_group **out)
{
    int world_size;

    if (topology == NULL || out == NULL) {
        lofi_set_error("lofi_group_create needs a topology and a place for the result: one of "
                       "them is NULL");
        return LOFI_INVALID;
    }
    world_size = lofi_topology_world_size(topology);
    if (count < 0 || count > world_size || (global_ranks == NULL) != (count == 0)) {
        lofi_set_error("a group of %d ranks in a world of %d: list 1 to %d distinct ranks, or NULL "
                       "with count 0 for the whole world",
                       count, world_size, world_size);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

/* Copies the list, checks it, and finds the caller in it. `seen`, by global rank, is zeroed. */
static lofi_status fill_members(lofi_group *group, const lofi_topology *topology,
                                const int *global_ranks, int *seen)
{
    int world_size = lofi_topology_world_size(topology);

    for (int i = 0; i < group->size; i++) {
        int global = global_ranks != NULL ? global_ranks[i] : i;
        if (global < 0 || global >= world_size) {
            lofi_set_error("member %d of the group is rank %d: the world has the ranks 0 to %d", i,
                           global, world_size - 1);
            return LOFI_INVALID;
        }
        if (seen[global] != 0) {
            lofi_set_error("rank %d is in the group twice, as member %d and member %d", global,
                           seen[global] - 1, i);
            return LOFI_INVALID;
        }
        seen[global] = i + 1;
        group->global_rank[i] = global;
    }
    group->rank = seen[lofi_topology_rank(topology)] - 1;
    if (group->rank < 0) {
        lofi_set_error("the calling rank %d is not in the group: only members create it",
                       lofi_topology_rank(topology));
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

/* `members`, by node of the world, is zeroed; it ends up with index + 1 of the touched nodes. */
static void fill_nodes(lofi_group *group, const lofi_topology *topology, int *members)
{
    int node_count = lofi_topology_node_count(topology);
    int first = 0;

    for (int i = 0; i < group->size; i++)
        members[lofi_topology_node_of(topology, group->global_rank[i])]++;
    for (int node = 0; node < node_count; node++) {
        if (members[node] == 0) continue;
        group->node_number[group->node_count] = node;
        group->first_member[group->node_count] = first;
        first += members[node];
        members[node] = ++group->node_count;
    }
    group->first_member[group->node_count] = first;
}

static int node_share(const lofi_group *group, int node_index)
{
    return group->first_member[node_index + 1] - group->first_member[node_index];
}

/* `index`, by node of the world, is what fill_nodes left; `used`, by touched node, is zeroed. */
static void fill_places(lofi_group *group, const lofi_topology *topology, const int *index,
                        int *used)
{
    for (int i = 0; i < group->size; i++) {
        int node = index[lofi_topology_node_of(topology, group->global_rank[i])] - 1;
        group->node_of[i] = node;
        group->place[i] = used[node]++;
        group->member[group->first_member[node] + group->place[i]] = i;
    }
    group->local_size = node_share(group, group->node_of[group->rank]);
    group->is_even = 1;
    for (int node = 0; node < group->node_count; node++)
        if (node_share(group, node) != group->local_size) group->is_even = 0;
}

/* A group touches at most as many nodes as it has members. */
static lofi_group *create_tables(int size)
{
    size_t n = (size_t)size;
    /* The header of the struct counts in whole ints, which it is aligned to. */
    lofi_group *group = lofi__mem_create(sizeof *group / sizeof(int) + 6 * n + 1, sizeof(int));

    if (group == NULL) return NULL;
    group->size = size;
    group->global_rank = group->tables;
    group->node_of = group->global_rank + n;
    group->place = group->node_of + n;
    group->member = group->place + n;
    group->node_number = group->member + n;
    group->first_member = group->node_number + n;
    return group;
}

lofi_status lofi_group_create(const lofi_topology *topology, const int *global_ranks, int count,
                              lofi_group **out)
{
    lofi_group *group = NULL;
    int *scratch = NULL;

    lofi_status st = check_list(topology, global_ranks, count, out);
    if (st != LOFI_OK) return st;
    size_t world_size = (size_t)lofi_topology_world_size(topology);

    st = LOFI_NO_MEMORY;
    group = create_tables(count > 0 ? count : (int)world_size);
    if (group == NULL) goto done;
    scratch = lofi__mem_create(3 * world_size, sizeof *scratch);
    if (scratch == NULL) goto done;

    st = fill_members(group, topology, global_ranks, scratch);
    if (st != LOFI_OK) goto done;
    fill_nodes(group, topology, scratch + world_size);
    fill_places(group, topology, scratch + world_size, scratch + 2 * world_size);
    *out = group;
    group = NULL;
done:
    lofi__mem_destroy(scratch);
    lofi__mem_destroy(group);
    return st;
}

void lofi_group_destroy(lofi_group *group)
{
    lofi__mem_destroy(group);
}

int lofi_group_size(const lofi_group *group)
{
    return group->size;
}

int lofi_group_rank(const lofi_group *group)
{
    return group->rank;
}

int lofi_group_node_count(const lofi_group *group)
{
    return group->node_count;
}

int lofi_group_local_size(const lofi_group *group)
{
    return group->local_size;
}

int lofi_group_is_even(const lofi_group *group)
{
    return group->is_even;
}

static int is_member(const lofi_group *group, int rank)
{
    return rank >= 0 && rank < group->size;
}

int lofi_group_global_rank(const lofi_group *group, int rank)
{
    return is_member(group, rank) ? group->global_rank[rank] : -1;
}

int lofi_group_place(const lofi_group *group, int rank)
{
    return is_member(group, rank) ? group->place[rank] : -1;
}

int lofi_group_node_of(const lofi_group *group, int rank)
{
    return is_member(group, rank) ? group->node_of[rank] : -1;
}

int lofi_group_node_number(const lofi_group *group, int node_index)
{
    if (node_index < 0 || node_index >= group->node_count) return -1;
    return group->node_number[node_index];
}

int lofi_group_member(const lofi_group *group, int node_index, int place)
{
    if (node_index < 0 || node_index >= group->node_count) return -1;
    if (place < 0 || place >= node_share(group, node_index)) return -1;
    return group->member[group->first_member[node_index] + place];
}
