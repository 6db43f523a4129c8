/* SPDX-License-Identifier: MIT */
/* The kinds of collectives, in one place for all that ask. */
#ifndef LOFI_CORE_COLLECTIVE_H
#define LOFI_CORE_COLLECTIVE_H

#include "lofi.h"

static inline int lofi__reduces(lofi_collective collective)
{
    return collective == LOFI_ALL_REDUCE || collective == LOFI_REDUCE ||
           collective == LOFI_REDUCE_SCATTER;
}

static inline int lofi__has_root(lofi_collective collective)
{
    return collective == LOFI_REDUCE || collective == LOFI_BROADCAST || collective == LOFI_GATHER ||
           collective == LOFI_SCATTER;
}

#endif /* LOFI_CORE_COLLECTIVE_H */
