/* SPDX-License-Identifier: MIT */
/* Plans by hand, refusals and their sentences, bytes that cross. */
#include "world.h"

static lofi_call node_call(lofi_collective collective)
{
    lofi_call call = LOFI_CALL_INIT;
    call.collective = collective;
    call.scope = LOFI_SCOPE_NODE;
    return call;
}

static int is_plan(lofi_plan plan, lofi_action action, lofi_adjust adjust, int64_t factor, int tile)
{
    return plan.action == action && plan.adjust == adjust && plan.factor == factor &&
           plan.tile == tile;
}

static void test_plans(void)
{
    lofi_group *group = world_group(5, 8, 4, NULL, 0);
    lofi_call call = node_call(LOFI_ALL_REDUCE);
    lofi_plan plan;

    ASSERT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    EXPECT(is_plan(plan, LOFI_DO_LOCAL, LOFI_ADJUST_SCALE, 2, 0));
    EXPECT(plan.root == -1 && plan.peer == -1);
    call.is_bool = 1;
    ASSERT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    EXPECT(is_plan(plan, LOFI_DO_LOCAL, LOFI_ADJUST_NONE, 1, 0));
    call.is_bool = 0;
    call.op = LOFI_BXOR;
    ASSERT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    EXPECT(is_plan(plan, LOFI_DO_LOCAL, LOFI_ADJUST_ZERO, 2, 0));
    call.scope = LOFI_SCOPE_WORLD;
    ASSERT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    EXPECT(is_plan(plan, LOFI_DO_REAL, LOFI_ADJUST_NONE, 1, 0));

    call = node_call(LOFI_BROADCAST);
    call.root = 2;
    call.issuer = LOFI_BY_WRAPPER;
    ASSERT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    EXPECT(plan.action == LOFI_DO_LOCAL && plan.root == 2);
    call.issuer = LOFI_BY_USER;
    ASSERT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    EXPECT(plan.action == LOFI_DO_IMPLICIT && plan.root == -1);
    call = node_call(LOFI_GATHER);
    call.root = 7;
    ASSERT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    EXPECT(is_plan(plan, LOFI_DO_LOCAL, LOFI_ADJUST_NONE, 1, 1) && plan.root == 3);
    call.root = 1;
    ASSERT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    EXPECT(is_plan(plan, LOFI_DO_NOTHING, LOFI_ADJUST_NONE, 1, 0));
    lofi_group_destroy(group);
}

static void expect_refused(const lofi_group *group, const lofi_call *call, lofi_status status)
{
    lofi_plan plan = {(lofi_action)99, LOFI_ADJUST_NONE, 0, 0, 0, 0};
    EXPECT(lofi_mirror_plan(group, call, &plan) == status);
    EXPECT(plan.action == (lofi_action)99); /* written on success only */
}

static void test_sentences(void)
{
    static const int uneven_ranks[] = {0, 1, 2, 5};
    lofi_group *group = world_group(5, 8, 4, NULL, 0);
    lofi_group *uneven = world_group(5, 8, 4, uneven_ranks, 4);
    lofi_call call = node_call(LOFI_ALL_TO_ALL);

    expect_refused(group, &call, LOFI_UNSUPPORTED);
    EXPECT(
        strcmp(lofi_last_error(),
               "all_to_all on a group that spans 2 nodes: nodes train apart and exchange nothing "
               "until the average; use a group inside one node, or wrap the call in "
               "lofi.scope(\"world\") if all nodes make it together") == 0);
    call = node_call(LOFI_SCATTER);
    call.strict = 1;
    expect_refused(group, &call, LOFI_UNSUPPORTED);
    EXPECT_ERROR("scatter on a group that spans 2 nodes");
    EXPECT_ERROR("LOFI_STRICT");
    call = node_call(LOFI_SEND);
    call.peer = 3;
    expect_refused(group, &call, LOFI_UNSUPPORTED);
    EXPECT_ERROR("send to rank 3 in node 0, on rank 5 in node 1");
    call.collective = LOFI_RECV;
    expect_refused(group, &call, LOFI_UNSUPPORTED);
    EXPECT_ERROR("recv from rank 3 in node 0");
    call = node_call(LOFI_BARRIER);
    expect_refused(uneven, &call, LOFI_UNSUPPORTED);
    EXPECT_ERROR(
        "barrier on a group whose 4 members are spread unevenly over 2 nodes (3 in node 0, "
        "1 in node 1)");
    lofi_group_destroy(group);
    lofi_group_destroy(uneven);
}

static void test_long_sentence(void)
{
    int ranks[151];
    for (int i = 0; i < 151; i++)
        ranks[i] = i < 150 ? 2 * i : 1;
    lofi_group *group = world_group(0, 300, 2, ranks, 151);
    lofi_call call = node_call(LOFI_ALL_REDUCE);

    expect_refused(group, &call, LOFI_UNSUPPORTED);
    EXPECT_ERROR("(2 in node 0, 1 in node 1, ");
    EXPECT_ERROR(" ...)");
    lofi_group_destroy(group);
}

static void test_invalid(void)
{
    lofi_group *group = world_group(0, 4, 2, NULL, 0);
    lofi_call call = node_call(LOFI_COLLECTIVE_COUNT);
    lofi_plan plan;

    expect_refused(group, &call, LOFI_INVALID);
    call = node_call((lofi_collective)-1);
    expect_refused(group, &call, LOFI_INVALID);
    call = node_call(LOFI_ALL_REDUCE);
    call.op = LOFI_OP_COUNT;
    expect_refused(group, &call, LOFI_INVALID);
    EXPECT_ERROR("op is 9: lofi.h lists the values 0 to 8");
    call.collective = LOFI_ALL_GATHER; /* the op is read for reductions only */
    EXPECT(lofi_mirror_plan(group, &call, &plan) == LOFI_OK);
    call.issuer = (lofi_issuer)3;
    expect_refused(group, &call, LOFI_INVALID);
    call = node_call(LOFI_ALL_GATHER);
    call.scope = (lofi_scope)2;
    expect_refused(group, &call, LOFI_INVALID);
    call = node_call(LOFI_REDUCE);
    call.root = 4;
    expect_refused(group, &call, LOFI_INVALID);
    EXPECT_ERROR("the root of reduce is 4: the group has the ranks 0 to 3");
    call.scope = LOFI_SCOPE_WORLD;
    expect_refused(group, &call, LOFI_INVALID);
    call = node_call(LOFI_RECV);
    call.peer = -1;
    expect_refused(group, &call, LOFI_INVALID);
    call.size = 4;
    expect_refused(group, &call, LOFI_INVALID);
    EXPECT(lofi_mirror_plan(NULL, &call, &plan) == LOFI_INVALID);
    EXPECT(lofi_mirror_plan(group, NULL, &plan) == LOFI_INVALID);
    EXPECT(lofi_mirror_plan(group, &call, NULL) == LOFI_INVALID);
    lofi_group_destroy(group);

    EXPECT(strcmp(lofi_collective_name(LOFI_REDUCE_SCATTER), "reduce_scatter") == 0);
    EXPECT(strcmp(lofi_collective_name(LOFI_COLLECTIVE_COUNT), "unknown") == 0);
    EXPECT(strcmp(lofi_op_name(LOFI_PREMUL_SUM), "PREMUL_SUM") == 0);
    EXPECT(strcmp(lofi_op_name((lofi_op)-1), "unknown") == 0);
}

/* Rank 1 of 3 nodes of 4. */
static void test_cross_bytes(void)
{
    lofi_group *group = world_group(1, 12, 4, NULL, 0);
    static const int inside[] = {0, 1, 3};

    EXPECT(lofi_cross_bytes(group, LOFI_ALL_REDUCE, -1, 1200) == 400); /* 2 * 2/3 * 1200 / 4 */
    EXPECT(lofi_cross_bytes(group, LOFI_ALL_REDUCE, -1, 10) == 3);     /* rounded down */
    EXPECT(lofi_cross_bytes(group, LOFI_ALL_GATHER, -1, 100) == 200);
    EXPECT(lofi_cross_bytes(group, LOFI_REDUCE, 2, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_REDUCE, 8, 100) == 25);
    EXPECT(lofi_cross_bytes(group, LOFI_GATHER, 2, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_GATHER, 8, 100) == 100);
    EXPECT(lofi_cross_bytes(group, LOFI_BROADCAST, 1, 100) == 200);
    EXPECT(lofi_cross_bytes(group, LOFI_BROADCAST, 0, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_SCATTER, 1, 100) == 800);
    EXPECT(lofi_cross_bytes(group, LOFI_SCATTER, 9, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_REDUCE_SCATTER, -1, 1200) == 800);
    EXPECT(lofi_cross_bytes(group, LOFI_ALL_TO_ALL, -1, 1200) == 800);
    EXPECT(lofi_cross_bytes(group, LOFI_SEND, 3, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_SEND, 4, 100) == 100);
    EXPECT(lofi_cross_bytes(group, LOFI_RECV, 4, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_RECV_ANY, -1, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_BARRIER, -1, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_REDUCE, 99, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_COLLECTIVE_COUNT, 0, 100) == 0);
    EXPECT(lofi_cross_bytes(group, LOFI_SCATTER, 1, UINT64_MAX) == UINT64_MAX);
    EXPECT(lofi_cross_bytes(group, LOFI_REDUCE_SCATTER, -1, UINT64_MAX) ==
           UINT64_MAX / 12 * 8 + UINT64_MAX % 12 * 8 / 12);
    lofi_group_destroy(group);

    group = world_group(1, 12, 4, inside, 3);
    for (int collective = 0; collective < LOFI_COLLECTIVE_COUNT; collective++)
        for (int root = 0; root < 3; root++)
            EXPECT(lofi_cross_bytes(group, (lofi_collective)collective, root, 1000) == 0);
    lofi_group_destroy(group);
}

int main(void)
{
    test_plans();
    test_sentences();
    test_long_sentence();
    test_invalid();
    test_cross_bytes();
    return test_end();
}
