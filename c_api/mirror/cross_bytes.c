/* SPDX-License-Identifier: MIT */
/*
 * How much of a real collective leaves the node.
 *
 * The number is what any algorithm must send at least, not what a ring or a tree happens to
 * send: statistics stay comparable between transports, and nothing has to look inside them.
 */
#include "lofi.h"

static uint64_t times(uint64_t bytes, uint64_t factor)
{
    if (factor != 0 && bytes > UINT64_MAX / factor) return UINT64_MAX;
    return bytes * factor;
}

/* bytes * over / under, rounded down, without an intermediate overflow. The remainder is below
 * `under`, and both are products of two numbers of ranks at most. */
static uint64_t share(uint64_t bytes, uint64_t over, uint64_t under)
{
    uint64_t whole = times(bytes / under, over);
    uint64_t rest = bytes % under * over / under;
    return whole > UINT64_MAX - rest ? UINT64_MAX : whole + rest;
}

uint64_t lofi_cross_bytes(const lofi_group *group, lofi_collective collective, int root_or_peer,
                          uint64_t bytes)
{
    uint64_t n = (uint64_t)lofi_group_size(group);
    uint64_t l = (uint64_t)lofi_group_local_size(group);
    uint64_t m = (uint64_t)lofi_group_node_count(group);
    int own = lofi_group_rank(group);
    int node = lofi_group_node_of(group, root_or_peer); /* -1 without a root or peer */
    int is_root = root_or_peer == own;
    int is_outside = node >= 0 && node != lofi_group_node_of(group, own);

    switch (collective) {
    case LOFI_ALL_REDUCE:
        return share(bytes, 2 * (m - 1), m * l);
    case LOFI_ALL_GATHER:
        return times(bytes, m - 1);
    case LOFI_REDUCE:
        return is_outside ? bytes / l : 0;
    case LOFI_GATHER:
    case LOFI_SEND:
        return is_outside ? bytes : 0;
    case LOFI_BROADCAST:
        return is_root ? times(bytes, m - 1) : 0;
    case LOFI_SCATTER:
        return is_root ? times(bytes, n - l) : 0;
    case LOFI_REDUCE_SCATTER:
    case LOFI_ALL_TO_ALL:
        return share(bytes, n - l, n);
    case LOFI_BARRIER:
    case LOFI_RECV:
    case LOFI_RECV_ANY:
    case LOFI_COLLECTIVE_COUNT:
        break;
    }
    return 0;
}
