/* SPDX-License-Identifier: MIT */
/*
 * The memory that the ranks of a communicator share holds
 *
 *   header | one record for each rank | two slots for each rank
 *
 * Every rank writes its own record and its own slots only; the one exception is `broken`.
 * docs/FORMATS.md describes it for debuggers. LOFI__SHM_LAYOUT changes with it.
 */
#ifndef LOFI_TRANSPORT_SHM_LAYOUT_H
#define LOFI_TRANSPORT_SHM_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define LOFI__SHM_MAGIC UINT64_C(0x316d68732d69666f) /* "ofi-shm1" */
#define LOFI__SHM_LAYOUT 2
#define LOFI__SHM_SLOTS 2
/* Two cache lines: x86 fetches them in pairs, and what one rank polls must not move with what
 * another one writes. */
#define LOFI__SHM_LINE 128
#define LOFI__SHM_INLINE 24 /* bytes of data in the record of a stage: to the end of a cache line */

/* The collective that a rank is in, so that the others can see whether they are in the same. */
struct lofi__shm_call {
    uint32_t number; /* of this collective: an older record is never taken for a newer one */
    uint8_t collective, dtype, op, reserved;
    uint32_t root;
    uint32_t reserved2;
    uint64_t count;
    uint64_t factor; /* the bits of the double */
};

/* What moves between cores in every collective lies in one place, so that a small one, data and
 * all, costs the transfer of a line or two. */
struct lofi__shm_stage {
    /* The last published stage of this parity; see shm.c. Others sleep on it (futex). */
    _Alignas(LOFI__SHM_LINE) _Atomic uint32_t number;
    uint32_t reserved;
    struct lofi__shm_call call; /* of the collective that this stage, or an earlier one, began */
    char data[LOFI__SHM_INLINE];
};

struct lofi__shm_rank {
    struct lofi__shm_stage stage[LOFI__SHM_SLOTS];      /* the last two, by parity */
    _Alignas(LOFI__SHM_LINE) _Atomic uint32_t sleepers; /* the number of ranks that sleep on them */
    _Atomic uint32_t left;                              /* 1: it has closed the communicator */
};

struct lofi__shm_header {
    uint64_t magic;
    uint32_t layout;
    uint32_t lofi_version; /* as lofi_version() */
    uint32_t rank_count;
    uint32_t rank_bytes; /* sizeof(struct lofi__shm_rank) */
    uint64_t slot_bytes; /* a multiple of LOFI__SHM_LINE */
    uint64_t total_bytes;
    uint64_t nonce; /* tells this memory from any other that is mapped by mistake */
    /* 0, or why no collective can run here any more; see shm.c. The first one who writes wins. */
    _Alignas(LOFI__SHM_LINE) _Atomic uint64_t broken;
};

static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
              "processes share atomics only where these take no lock");
static_assert(sizeof(_Atomic uint32_t) == 4, "a futex is 32 bits");
static_assert(sizeof(struct lofi__shm_header) == 2 * LOFI__SHM_LINE, "layout");
static_assert(sizeof(struct lofi__shm_stage) == LOFI__SHM_LINE, "layout");
static_assert(sizeof(struct lofi__shm_rank) == 3 * LOFI__SHM_LINE, "layout");
static_assert(offsetof(struct lofi__shm_stage, data) == 40, "layout");

#endif /* LOFI_TRANSPORT_SHM_LAYOUT_H */
