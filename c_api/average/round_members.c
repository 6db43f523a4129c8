/* SPDX-License-Identifier: MIT */
/*
 * This decides which nodes are in an average.
 *
 * A pure function of the nodes' reports, evaluated by every rank alike, so that no rank has to
 * announce the list to the others. A node with weights that are not finite is left out, not
 * averaged in: one NaN would end up in all models. `min_nodes` speaks of nodes that came; a
 * node that came broken is known and reported, while one that is missing may still be training.
 */
#include "lofi.h"

#include <stdio.h>

static int is_positive(double weight)
{
    return weight > 0 && weight <= 0x1.fffffffffffffp+1023; /* false for NaN as well */
}

static lofi_status check_reports(const lofi_node_report *reports, int nodes)
{
    for (int node = 0; node < nodes; node++) {
        if (!reports[node].present) continue; /* the rest of it is then undefined */
        if (!is_positive(reports[node].weight)) {
            lofi_set_error("the weight of node %d is %g: weights must be finite and above zero",
                           node, reports[node].weight);
            return LOFI_INVALID;
        }
        if (reports[node].nonfinite < -1) {
            lofi_set_error("node %d reports tensor %lld as not finite: -1 or an index is possible",
                           node, (long long)reports[node].nonfinite);
            return LOFI_INVALID;
        }
    }
    return LOFI_OK;
}

static lofi_status refuse_few(const lofi_node_report *reports, int nodes, int present,
                              int min_nodes)
{
    char list[256] = "";
    size_t used = 0;

    for (int node = 0; node < nodes && used < sizeof list - 24; node++) {
        if (reports[node].present) continue;
        used +=
            (size_t)snprintf(list + used, sizeof list - used, "%s%d", used > 0 ? ", " : "", node);
    }
    if (used >= sizeof list - 24) snprintf(list + used, sizeof list - used, " ...");
    lofi_set_error(
        "Timed out waiting: %d of %d nodes came to the average, at least %d have to "
        "(LOFI_MIN_NODES); missing: %s. Wait longer (LOFI_TIMEOUT), or allow fewer nodes",
        present, nodes, min_nodes, list);
    return LOFI_PEER_LOST;
}

static lofi_status refuse_nonfinite(const lofi_node_report *reports, int nodes, int present)
{
    int first = 0;
    while (first < nodes && !reports[first].present)
        first++;
    lofi_set_error("no node can be averaged: each of the %d that came holds a tensor that is not "
                   "finite (node %d: tensor %lld); every node keeps its own weights",
                   present, first, (long long)reports[first].nonfinite);
    return LOFI_STATE;
}

lofi_status lofi_round_members(const lofi_node_report *reports, int nodes, int min_nodes,
                               int *members, int *member_count)
{
    int present = 0, finite = 0;

    if (reports == NULL || members == NULL || member_count == NULL || nodes < 1) {
        lofi_set_error("lofi_round_members needs the reports of at least one node (it has %d) "
                       "and places for the results",
                       nodes);
        return LOFI_INVALID;
    }
    if (min_nodes < 1 || min_nodes > nodes) {
        lofi_set_error("min_nodes is %d: choose 1 to %d, the number of nodes", min_nodes, nodes);
        return LOFI_INVALID;
    }
    lofi_status st = check_reports(reports, nodes);
    if (st != LOFI_OK) return st;
    for (int node = 0; node < nodes; node++) {
        if (!reports[node].present) continue;
        present++;
        if (reports[node].nonfinite < 0) finite++;
    }
    if (present < min_nodes) return refuse_few(reports, nodes, present, min_nodes);
    if (finite == 0) return refuse_nonfinite(reports, nodes, present);

    int count = 0;
    for (int node = 0; node < nodes; node++)
        if (reports[node].present && reports[node].nonfinite < 0) members[count++] = node;
    *member_count = count;
    return LOFI_OK;
}
