/* SPDX-License-Identifier: MIT */
/*
 * The mirror plan: what a collective on a group over several nodes means inside one node.
 *
 * A plan is data that some transport executes, not a table of functions that call one: so the
 * meaning is a pure function, and a test can compare it with a model of the whole world without
 * a single process group.
 *
 * Inputs are adjusted before the local collective, not its result after. Scaling by m commutes
 * with the sum, and an input can be adjusted where it lies while the result of an asynchronous
 * collective can't be touched until it has arrived.
 */
#include "core/collective.h"
#include "core/options.h"
#include "lofi.h"

#include <stdio.h>

#define WHAT_TO_DO                                                                                 \
    "use a group inside one node, or wrap the call in lofi.scope(\"world\") if all nodes make it " \
    "together"

static int has_peer(lofi_collective collective)
{
    return collective == LOFI_SEND || collective == LOFI_RECV;
}

static lofi_status check_value(const char *name, int value, int count)
{
    if (value >= 0 && value < count) return LOFI_OK;
    lofi_set_error("%s is %d: lofi.h lists the values 0 to %d", name, value, count - 1);
    return LOFI_INVALID;
}

static lofi_status check_member(const lofi_group *group, const lofi_call *call, const char *name,
                                int rank)
{
    if (rank >= 0 && rank < lofi_group_size(group)) return LOFI_OK;
    lofi_set_error("the %s of %s is %d: the group has the ranks 0 to %d", name,
                   lofi_collective_name(call->collective), rank, lofi_group_size(group) - 1);
    return LOFI_INVALID;
}

static lofi_status check_call(const lofi_group *group, const lofi_call *call, const lofi_plan *plan)
{
    if (group == NULL || plan == NULL) {
        lofi_set_error("lofi_mirror_plan needs a group and a place for the plan: one of them is "
                       "NULL");
        return LOFI_INVALID;
    }
    lofi_status st = check_value("collective", (int)call->collective, LOFI_COLLECTIVE_COUNT);
    if (st == LOFI_OK) st = check_value("issuer", (int)call->issuer, LOFI_BY_BACKWARD + 1);
    if (st == LOFI_OK) st = check_value("scope", (int)call->scope, LOFI_SCOPE_NODE + 1);
    if (st == LOFI_OK && lofi__reduces(call->collective))
        st = check_value("op", (int)call->op, LOFI_OP_COUNT);
    if (st == LOFI_OK && lofi__has_root(call->collective))
        st = check_member(group, call, "root", call->root);
    if (st == LOFI_OK && has_peer(call->collective))
        st = check_member(group, call, "peer", call->peer);
    return st;
}

static lofi_status refuse_spanning(const lofi_group *group, const lofi_call *call)
{
    lofi_set_error("%s on a group that spans %d nodes: nodes train apart and exchange nothing "
                   "until the average; " WHAT_TO_DO,
                   lofi_collective_name(call->collective), lofi_group_node_count(group));
    return LOFI_UNSUPPORTED;
}

static lofi_status refuse_strict(const lofi_group *group, const lofi_call *call)
{
    lofi_set_error("%s on a group that spans %d nodes would cross them while they train apart, and "
                   "LOFI_STRICT refuses that; " WHAT_TO_DO,
                   lofi_collective_name(call->collective), lofi_group_node_count(group));
    return LOFI_UNSUPPORTED;
}

static int number_of_node(const lofi_group *group, int rank)
{
    return lofi_group_node_number(group, lofi_group_node_of(group, rank));
}

static lofi_status refuse_peer(const lofi_group *group, const lofi_call *call)
{
    int own = lofi_group_rank(group);

    lofi_set_error("%s %s rank %d in node %d, on rank %d in node %d: nodes train apart and "
                   "exchange nothing until the average; name a rank of the own node, or wrap the "
                   "call in lofi.scope(\"world\") if both sides make it together",
                   lofi_collective_name(call->collective),
                   call->collective == LOFI_SEND ? "to" : "from",
                   lofi_group_global_rank(group, call->peer), number_of_node(group, call->peer),
                   lofi_group_global_rank(group, own), number_of_node(group, own));
    return LOFI_UNSUPPORTED;
}

static int members_in(const lofi_group *group, int node_index)
{
    int count = 0;
    while (lofi_group_member(group, node_index, count) >= 0)
        count++;
    return count;
}

static lofi_status refuse_uneven(const lofi_group *group, const lofi_call *call)
{
    char list[256] = "";
    size_t used = 0;
    int node_count = lofi_group_node_count(group);

    /* A list of hundreds of nodes helps no one: it ends early. */
    for (int i = 0; i < node_count && used < sizeof list - 48; i++)
        used +=
            (size_t)snprintf(list + used, sizeof list - used, "%s%d in node %d", i > 0 ? ", " : "",
                             members_in(group, i), lofi_group_node_number(group, i));
    if (used >= sizeof list - 48) snprintf(list + used, sizeof list - used, " ...");
    lofi_set_error("%s on a group whose %d members are spread unevenly over %d nodes (%s): a "
                   "member without an image in every node can't be mirrored; take as many ranks "
                   "of each node, " WHAT_TO_DO,
                   lofi_collective_name(call->collective), lofi_group_size(group), node_count,
                   list);
    return LOFI_UNSUPPORTED;
}

/* m copies of every input go into a mirrored reduction; this makes one copy count for m. */
static void adjust_inputs(const lofi_group *group, const lofi_call *call, lofi_plan *plan)
{
    int m = lofi_group_node_count(group);

    switch (call->op) {
    case LOFI_SUM:
    case LOFI_PREMUL_SUM:
        /* the sum of booleans is a logical or, and more copies don't change it */
        if (!call->is_bool) plan->adjust = LOFI_ADJUST_SCALE;
        break;
    case LOFI_PRODUCT:
        /* nor does the product, a logical and; powers of booleans are not defined everywhere */
        if (!call->is_bool) plan->adjust = LOFI_ADJUST_POWER;
        break;
    case LOFI_BXOR:
        if (m % 2 == 0) plan->adjust = LOFI_ADJUST_ZERO;
        break;
    case LOFI_AVG:
    case LOFI_MIN:
    case LOFI_MAX:
    case LOFI_BAND:
    case LOFI_BOR:
    case LOFI_OP_COUNT:
        break;
    }
    if (plan->adjust != LOFI_ADJUST_NONE) plan->factor = m;
}

/* Reduce and gather: only the node that holds the root has anything to give it. */
static void plan_to_root(const lofi_group *group, const lofi_call *call, lofi_plan *plan)
{
    int own = lofi_group_node_of(group, lofi_group_rank(group));

    if (lofi_group_node_of(group, call->root) != own) {
        plan->action = LOFI_DO_NOTHING;
        return;
    }
    plan->root = lofi_group_place(group, call->root);
    if (call->collective == LOFI_REDUCE)
        adjust_inputs(group, call, plan);
    else
        plan->tile = 1;
}

static lofi_status plan_from_root(const lofi_group *group, const lofi_call *call, lofi_plan *plan)
{
    if (call->collective == LOFI_BROADCAST && call->issuer == LOFI_BY_WRAPPER) {
        plan->root = lofi_group_place(group, call->root);
        return LOFI_OK;
    }
    if (call->strict) return refuse_strict(group, call);
    plan->action = LOFI_DO_IMPLICIT;
    return LOFI_OK;
}

static lofi_status plan_slots(const lofi_group *group, const lofi_call *call, lofi_plan *plan)
{
    if (call->issuer != LOFI_BY_BACKWARD) return refuse_spanning(group, call);
    if (call->collective == LOFI_REDUCE_SCATTER)
        adjust_inputs(group, call, plan);
    else
        plan->tile = 1;
    return LOFI_OK;
}

static lofi_status plan_peer(const lofi_group *group, const lofi_call *call, lofi_plan *plan)
{
    int own = lofi_group_node_of(group, lofi_group_rank(group));

    if (lofi_group_node_of(group, call->peer) != own) return refuse_peer(group, call);
    plan->peer = lofi_group_place(group, call->peer);
    return LOFI_OK;
}

static lofi_status plan_mirrored(const lofi_group *group, const lofi_call *call, lofi_plan *plan)
{
    switch (call->collective) {
    case LOFI_ALL_REDUCE:
        adjust_inputs(group, call, plan);
        return LOFI_OK;
    case LOFI_ALL_GATHER:
        plan->tile = 1;
        return LOFI_OK;
    case LOFI_REDUCE:
    case LOFI_GATHER:
        plan_to_root(group, call, plan);
        return LOFI_OK;
    case LOFI_BROADCAST:
    case LOFI_SCATTER:
        return plan_from_root(group, call, plan);
    case LOFI_REDUCE_SCATTER:
    case LOFI_ALL_TO_ALL:
        return plan_slots(group, call, plan);
    case LOFI_SEND:
    case LOFI_RECV:
        return plan_peer(group, call, plan);
    case LOFI_BARRIER:
    case LOFI_RECV_ANY:
    case LOFI_COLLECTIVE_COUNT:
        break;
    }
    return LOFI_OK;
}

lofi_status lofi_mirror_plan(const lofi_group *group, const lofi_call *given, lofi_plan *plan)
{
    lofi_plan draft = {LOFI_DO_REAL, LOFI_ADJUST_NONE, 1, 0, -1, -1};
    lofi_call full = LOFI_CALL_INIT;
    const lofi_call *call = &full;

    lofi_status st = lofi__options_read(&full, sizeof full, given, "LOFI_CALL_INIT");
    if (st == LOFI_OK) st = check_call(group, call, plan);
    if (st != LOFI_OK) return st;
    if (call->scope == LOFI_SCOPE_NODE && lofi_group_node_count(group) > 1) {
        if (!lofi_group_is_even(group)) return refuse_uneven(group, call);
        draft.action = LOFI_DO_LOCAL;
        st = plan_mirrored(group, call, &draft);
    }
    if (st == LOFI_OK) *plan = draft;
    return st;
}
