/* SPDX-License-Identifier: MIT */
/* The nodes that give to an average. */
#include "test.h"

#include <math.h>

#define NODES 5

static lofi_node_report reports[NODES];
static int members[NODES], member_count;

static void all_present(void)
{
    for (int i = 0; i < NODES; i++)
        reports[i] = (lofi_node_report){1, 0, -1, 1.0};
    for (int i = 0; i < NODES; i++)
        members[i] = -9;
    member_count = -9;
}

static lofi_status decide(int min_nodes)
{
    return lofi_round_members(reports, NODES, min_nodes, members, &member_count);
}

static void test_members(void)
{
    all_present();
    EXPECT(decide(NODES) == LOFI_OK && member_count == NODES);
    for (int i = 0; i < NODES; i++)
        EXPECT(members[i] == i);

    all_present();
    reports[1].present = 0;
    reports[1].weight = NAN; /* of an absent node: not read */
    reports[1].nonfinite = -7;
    reports[3].nonfinite = 12;
    EXPECT(decide(4) == LOFI_OK && member_count == 3);
    EXPECT(members[0] == 0 && members[1] == 2 && members[2] == 4 && members[3] == -9);

    /* one that came broken still came */
    EXPECT(decide(5) == LOFI_PEER_LOST);
    EXPECT_ERROR("Timed out waiting: 4 of 5 nodes came to the average, at least 5 have to "
                 "(LOFI_MIN_NODES); missing: "
                 "1.");
    reports[0].present = 0;
    EXPECT(decide(4) == LOFI_PEER_LOST);
    EXPECT_ERROR("missing: 0, 1");
}

static void test_nothing_left(void)
{
    all_present();
    for (int i = 0; i < NODES; i++)
        reports[i].nonfinite = 3 + i;
    reports[0].present = 0;
    EXPECT(decide(1) == LOFI_STATE);
    EXPECT_ERROR("each of the 4 that came holds a tensor that is not finite (node 1: tensor 4)");
    for (int i = 0; i < NODES; i++)
        reports[i].present = 0;
    EXPECT(decide(1) == LOFI_PEER_LOST);
    EXPECT(member_count == -9 && members[0] == -9);
}

static void test_invalid(void)
{
    static const double bad[] = {0.0, -0.0, -1.0, NAN, INFINITY, -INFINITY};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        all_present();
        reports[2].weight = bad[i];
        EXPECT(decide(1) == LOFI_INVALID);
        EXPECT_ERROR("the weight of node 2 is");
    }
    all_present();
    reports[2].weight = 0x1.fffffffffffffp+1023;
    reports[3].weight = 5e-324;
    EXPECT(decide(1) == LOFI_OK && member_count == NODES);
    reports[4].nonfinite = -2;
    EXPECT(decide(1) == LOFI_INVALID);
    all_present();
    EXPECT(decide(0) == LOFI_INVALID && decide(NODES + 1) == LOFI_INVALID);
    EXPECT(lofi_round_members(NULL, 1, 1, members, &member_count) == LOFI_INVALID);
    EXPECT(lofi_round_members(reports, 0, 1, members, &member_count) == LOFI_INVALID);
    EXPECT(member_count == -9);
}

static void test_long_list(void)
{
    static lofi_node_report many[2000];
    static int list[2000];
    int count = 0;

    many[7] = (lofi_node_report){1, 0, -1, 1.0};
    EXPECT(lofi_round_members(many, 2000, 2, list, &count) == LOFI_PEER_LOST);
    EXPECT_ERROR("1 of 2000 nodes came");
    EXPECT_ERROR(" ...");
    EXPECT(lofi_round_members(many, 2000, 1, list, &count) == LOFI_OK);
    EXPECT(count == 1 && list[0] == 7);
}

int main(void)
{
    test_members();
    test_nothing_left();
    test_invalid();
    test_long_list();
    return test_end();
}
