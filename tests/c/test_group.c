/* SPDX-License-Identifier: MIT */
/* Where groups lie among nodes. */
#include "world.h"

static void test_world_group(void)
{
    lofi_group *group = world_group(5, 8, 4, NULL, 0);

    EXPECT(lofi_group_size(group) == 8 && lofi_group_rank(group) == 5);
    EXPECT(lofi_group_node_count(group) == 2 && lofi_group_local_size(group) == 4);
    EXPECT(lofi_group_is_even(group));
    for (int rank = 0; rank < 8; rank++) {
        EXPECT(lofi_group_global_rank(group, rank) == rank);
        EXPECT(lofi_group_place(group, rank) == rank % 4);
        EXPECT(lofi_group_node_of(group, rank) == rank / 4);
        EXPECT(lofi_group_member(group, rank / 4, rank % 4) == rank);
    }
    lofi_group_destroy(group);
    lofi_group_destroy(NULL);
}

/* Unsorted, in nodes 0 and 2 of three: places follow the order of the group. */
static void test_unsorted(void)
{
    static const int ranks[] = {11, 1, 8, 0};
    lofi_group *group = world_group(8, 12, 4, ranks, 4);

    EXPECT(lofi_group_rank(group) == 2 && lofi_group_node_count(group) == 2);
    EXPECT(lofi_group_local_size(group) == 2 && lofi_group_is_even(group));
    EXPECT(lofi_group_node_number(group, 0) == 0 && lofi_group_node_number(group, 1) == 2);
    EXPECT(lofi_group_place(group, 0) == 0 && lofi_group_place(group, 1) == 0);
    EXPECT(lofi_group_place(group, 2) == 1 && lofi_group_place(group, 3) == 1);
    EXPECT(lofi_group_node_of(group, 0) == 1 && lofi_group_node_of(group, 3) == 0);
    EXPECT(lofi_group_member(group, 1, 0) == 0 && lofi_group_member(group, 1, 1) == 2);
    EXPECT(lofi_group_member(group, 0, 0) == 1 && lofi_group_member(group, 0, 1) == 3);
    lofi_group_destroy(group);
}

static void test_uneven(void)
{
    static const int ranks[] = {0, 1, 2, 4};
    lofi_group *group = world_group(4, 8, 4, ranks, 4);

    EXPECT(!lofi_group_is_even(group) && lofi_group_local_size(group) == 1);
    EXPECT(lofi_group_member(group, 0, 2) == 2 && lofi_group_member(group, 0, 3) == -1);
    EXPECT(lofi_group_member(group, 1, 0) == 3 && lofi_group_member(group, 1, 1) == -1);
    EXPECT(lofi_group_member(group, 2, 0) == -1 && lofi_group_member(group, -1, 0) == -1);
    EXPECT(lofi_group_member(group, 0, -1) == -1);
    EXPECT(lofi_group_place(group, 4) == -1 && lofi_group_place(group, -1) == -1);
    EXPECT(lofi_group_node_of(group, 4) == -1 && lofi_group_node_number(group, 2) == -1);
    EXPECT(lofi_group_global_rank(group, -1) == -1);
    lofi_group_destroy(group);
}

static lofi_status try_group(const int *ranks, int count)
{
    lofi_topology *topology = world_topology(1, 4, 2);
    lofi_group *group = NULL;
    lofi_status st = lofi_group_create(topology, ranks, count, &group);

    EXPECT((st == LOFI_OK) == (group != NULL));
    lofi_group_destroy(group);
    lofi_topology_destroy(topology);
    return st;
}

static void test_refused(void)
{
    static const int repeated[] = {1, 3, 1}, outside[] = {1, 4}, negative[] = {-1, 1};
    static const int absent[] = {0, 2}, many[] = {0, 1, 2, 3, 1};
    lofi_group *group = NULL;

    EXPECT(try_group(repeated, 3) == LOFI_INVALID);
    EXPECT_ERROR("rank 1 is in the group twice, as member 0 and member 2");
    EXPECT(try_group(outside, 2) == LOFI_INVALID);
    EXPECT_ERROR("member 1 of the group is rank 4");
    EXPECT(try_group(negative, 2) == LOFI_INVALID);
    EXPECT_ERROR("rank -1");
    EXPECT(try_group(absent, 2) == LOFI_INVALID);
    EXPECT_ERROR("the calling rank 1 is not in the group");
    EXPECT(try_group(many, 5) == LOFI_INVALID);
    EXPECT(try_group(many, 0) == LOFI_INVALID);
    EXPECT(try_group(many, -1) == LOFI_INVALID);
    EXPECT(try_group(NULL, 2) == LOFI_INVALID);
    EXPECT(try_group(many, 4) == LOFI_OK);
    EXPECT(try_group(NULL, 0) == LOFI_OK);
    EXPECT(lofi_group_create(NULL, NULL, 0, &group) == LOFI_INVALID);
}

int main(void)
{
    test_world_group();
    test_unsorted();
    test_uneven();
    test_refused();
    return test_end();
}
