/* SPDX-License-Identifier: MIT */
/* Collectives, and the operations of those that reduce. */
#ifndef LOFI_COLLECTIVE_H
#define LOFI_COLLECTIVE_H

#include "lofi/base.h"

LOFI__DECLARATIONS_BEGIN

typedef enum lofi_collective {
    LOFI_ALL_REDUCE = 0,
    LOFI_REDUCE = 1,
    LOFI_BROADCAST = 2,
    LOFI_ALL_GATHER = 3,
    LOFI_GATHER = 4,
    LOFI_SCATTER = 5,
    LOFI_REDUCE_SCATTER = 6,
    LOFI_ALL_TO_ALL = 7,
    LOFI_BARRIER = 8,
    LOFI_SEND = 9,
    LOFI_RECV = 10,
    LOFI_RECV_ANY = 11,
    LOFI_COLLECTIVE_COUNT = 12
} lofi_collective;

typedef enum lofi_op {
    LOFI_SUM = 0,
    LOFI_AVG = 1,
    LOFI_PRODUCT = 2,
    LOFI_MIN = 3,
    LOFI_MAX = 4,
    LOFI_BAND = 5,
    LOFI_BOR = 6,
    LOFI_BXOR = 7,
    LOFI_PREMUL_SUM = 8,
    LOFI_OP_COUNT = 9
} lofi_op;

/* "all_reduce", "SUM": names as torch.distributed spells them. Static storage. */
const char *lofi_collective_name(lofi_collective collective);
const char *lofi_op_name(lofi_op op);

LOFI__DECLARATIONS_END

#endif /* LOFI_COLLECTIVE_H */
