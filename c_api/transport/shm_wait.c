/* SPDX-License-Identifier: MIT */
/*
 * A wait polls for a while, since the others are most often a few microseconds away, and then
 * sleeps in the kernel (futex) until the awaited rank publishes. How long depends on who could use
 * the core. With more ranks than cores it does not poll: whoever polls keeps off the core the very
 * rank it waits for. In the background the caller's own computation wants it. Else nobody does, and
 * a long poll is better than a sleep, also because of what follows one: a kernel wakes a process on
 * the core of its waker, where two ranks then take turns while the other core idles; only as long
 * as both want to run does it move one of them.
 *
 * A sleep is cut into slices. Between them the sleeper looks at what no futex can wake it for:
 * its deadline, and whether the other process still exists.
 *
 * Memory order. A publisher writes its slots, then its stage (release); who has seen the stage
 * (acquire, in has_reached) sees the slots. Sleeping is Dekker's pattern: the sleeper counts
 * itself in `sleepers`, then the kernel compares `stage`; the publisher writes `stage`, then reads
 * `sleepers`. All four are sequentially consistent, so one of the two sees the other.
 */
#define _GNU_SOURCE
#include "transport/shm_wait.h"

#include "core/collective.h"
#include "transport/clock.h"
#include "transport/shm_peer.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLICE_NS INT64_C(20000000)
#define POLL_NS INT64_C(2000000)
#define POLL_BACKGROUND_NS INT64_C(20000)
#define POLL_ALONE_NS INT64_C(3000) /* from then on its core is offered to others in between */
#define POLLS_PER_LOOK 32           /* between two looks at the clock */

static void futex_wait(_Atomic uint32_t *word, uint32_t seen, int64_t limit_ns)
{
    struct timespec limit = {.tv_sec = limit_ns / 1000000000, .tv_nsec = limit_ns % 1000000000};
    /* The caller looks again, whatever this returns. */
    syscall(SYS_futex, (uint32_t *)(uintptr_t)word, FUTEX_WAIT, seen, &limit, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uint32_t *)(uintptr_t)word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb"); /* "yield" is a no-op on most of them */
#endif
}

/* Stages wrap around; two ranks are never far apart. */
static int has_reached(const struct lofi__shm_rank *rank, uint32_t stage)
{
    const _Atomic uint32_t *number = &rank->stage[stage % LOFI__SHM_SLOTS].number;
    return (int32_t)(atomic_load_explicit(number, memory_order_acquire) - stage) >= 0;
}

/* ---- the end of a communicator --------------------------------------------------------------- */

/* Keeps of `stage` only which of the two records it is. */
static uint64_t pack(enum lofi__shm_reason reason, int culprit, int reporter, uint32_t stage)
{
    return (uint64_t)(stage % LOFI__SHM_SLOTS) << 56 | (uint64_t)reason << 48 |
           (uint64_t)(uint32_t)culprit << 24 | (uint64_t)(uint32_t)reporter;
}

void lofi__shm_break(struct lofi__shm *shm, enum lofi__shm_reason reason, int culprit,
                     uint32_t stage)
{
    uint64_t fine = 0, broken = pack(reason, culprit, shm->members->rank, stage);

    if (!atomic_compare_exchange_strong(&shm->segment.header->broken, &fine, broken)) return;
    for (int rank = 0; rank < shm->members->count; rank++)
        for (uint32_t parity = 0; parity < LOFI__SHM_SLOTS; parity++)
            futex_wake(&lofi__segment_stage(&shm->segment, rank, parity)->number);
}

static void describe_call(const struct lofi__shm_call *call, char *text, size_t bytes)
{
    const lofi_collective collective = (lofi_collective)call->collective;
    const int reduces = lofi__reduces(collective);
    char root[32] = "";

    if (lofi__has_root(collective)) snprintf(root, sizeof root, ", root %u", (unsigned)call->root);
    snprintf(text, bytes, "%s of %llu %s%s%s%s", lofi_collective_name(collective),
             (unsigned long long)call->count, lofi_dtype_name((lofi_dtype)call->dtype),
             reduces ? ", " : "", reduces ? lofi_op_name((lofi_op)call->op) : "", root);
}

static lofi_status explain_mismatch(const struct lofi__shm *shm, const char *where, int culprit,
                                    int reporter, uint32_t stage)
{
    const struct lofi__members *members = shm->members;
    char theirs[96], ours[96];

    describe_call(&lofi__segment_stage(&shm->segment, culprit, stage)->call, theirs, sizeof theirs);
    describe_call(&lofi__segment_stage(&shm->segment, reporter, stage)->call, ours, sizeof ours);
    lofi_set_error("%s: rank %d is in %s, rank %d in %s; all ranks must issue the same collectives "
                   "in the same order",
                   where, members->label[culprit], theirs, members->label[reporter], ours);
    return LOFI_STATE;
}

/* The sentence: the collective, the rank, what is wrong with it. */
static lofi_status explain(struct lofi__shm *shm, const struct lofi__shm_wait *wait,
                           uint64_t broken)
{
    const struct lofi__members *members = shm->members;
    const enum lofi__shm_reason reason = (enum lofi__shm_reason)(broken >> 48 & 0xff);
    const int culprit = (int)(broken >> 24 & 0xffffff), reporter = (int)(broken & 0xffffff);
    const struct lofi__shm_peer *peer = &shm->peer[culprit];
    char where[LOFI__NAME_BYTES + 48], found_by[48] = "";

    snprintf(where, sizeof where, "%s%s%s", lofi_collective_name(wait->collective),
             members->name[0] != '\0' ? " of " : "", members->name);
    if (reporter != members->rank && reporter != culprit)
        snprintf(found_by, sizeof found_by, " (found by rank %d)", members->label[reporter]);

    switch (reason) {
    case LOFI__SHM_LOST:
        lofi_set_error("%s: rank %d is gone, its process %d has %s%s; look at its own error", where,
                       members->label[culprit], peer->pid,
                       lofi__peer_is_gone(peer->pid, peer->watch) ? "ended"
                                                                  : "closed the communicator",
                       found_by);
        return LOFI_PEER_LOST;
    case LOFI__SHM_LATE:
        lofi_set_error(
            "%s: Timed out waiting: rank %d did not come in time%s; its process %d is %s", where,
            members->label[culprit], found_by, peer->pid, lofi__peer_state(peer->pid, peer->watch));
        return LOFI_TIMED_OUT;
    case LOFI__SHM_MISMATCH:
        return explain_mismatch(shm, where, culprit, reporter, (uint32_t)(broken >> 56));
    case LOFI__SHM_ABORTED:
    case LOFI__SHM_FINE:
        break;
    }
    lofi_set_error("%s: rank %d has aborted the communicator", where, members->label[culprit]);
    return LOFI_PEER_LOST;
}

lofi_status lofi__shm_check(struct lofi__shm *shm, const struct lofi__shm_wait *wait)
{
    uint64_t broken = atomic_load_explicit(&shm->segment.header->broken, memory_order_acquire);
    return broken == 0 ? LOFI_OK : explain(shm, wait, broken);
}

lofi_status lofi__shm_fail(struct lofi__shm *shm, const struct lofi__shm_wait *wait,
                           enum lofi__shm_reason reason, int culprit)
{
    lofi__shm_break(shm, reason, culprit, shm->call_stage);
    return lofi__shm_check(shm, wait);
}

/* ---- waiting --------------------------------------------------------------------------------- */

void lofi__shm_publish(struct lofi__shm *shm)
{
    struct lofi__shm_rank *own = lofi__segment_rank(&shm->segment, shm->members->rank);
    const uint32_t stage = ++shm->stage;
    _Atomic uint32_t *number = &own->stage[stage % LOFI__SHM_SLOTS].number;

    atomic_store(number, stage);
    if (atomic_load(&own->sleepers) > 0) futex_wake(number);
}

static int poll_for(const struct lofi__shm_rank *rank, uint32_t stage, int64_t poll_ns)
{
    const int64_t begin = lofi__now_ns();
    int64_t polled = 0;

    do {
        for (int i = 0; i < POLLS_PER_LOOK; i++) {
            if (has_reached(rank, stage)) return 1;
            relax();
        }
        /* The rank that is waited for may be queued for this core behind the one that polls. */
        if (polled > POLL_ALONE_NS) sched_yield();
        polled = lofi__now_ns() - begin;
    } while (polled < poll_ns);
    return 0;
}

/* Fails the wait if rank `index` will not come any more, or comes too late. */
static lofi_status look_around(struct lofi__shm *shm, const struct lofi__shm_wait *wait, int index,
                               uint32_t stage, int64_t now)
{
    struct lofi__shm_rank *rank = lofi__segment_rank(&shm->segment, index);
    const struct lofi__shm_peer *peer = &shm->peer[index];

    const int gone = atomic_load_explicit(&rank->left, memory_order_acquire) != 0 ||
                     lofi__peer_is_gone(peer->pid, peer->watch);
    /* A rank that published the stage before it went has done its part. */
    if (gone && !has_reached(rank, stage)) return lofi__shm_fail(shm, wait, LOFI__SHM_LOST, index);
    if (now >= wait->deadline_ns && !has_reached(rank, stage))
        return lofi__shm_fail(shm, wait, LOFI__SHM_LATE, index);
    return LOFI_OK;
}

static lofi_status sleep_for(struct lofi__shm *shm, struct lofi__shm_wait *wait, int index,
                             uint32_t stage)
{
    struct lofi__shm_rank *rank = lofi__segment_rank(&shm->segment, index);
    _Atomic uint32_t *number = &rank->stage[stage % LOFI__SHM_SLOTS].number;
    lofi_status st = LOFI_OK;
    if (wait->deadline_ns == 0) wait->deadline_ns = lofi__after_ms(wait->timeout_ms);
    int64_t next_look = lofi__now_ns() + SLICE_NS;

    atomic_fetch_add(&rank->sleepers, 1);
    for (;;) {
        uint32_t seen = atomic_load(number);
        if ((int32_t)(seen - stage) >= 0) break;
        st = lofi__shm_check(shm, wait);
        if (st != LOFI_OK) break;
        const int64_t now = lofi__now_ns();
        if (now >= next_look || now >= wait->deadline_ns) {
            st = look_around(shm, wait, index, stage, now);
            if (st != LOFI_OK) break;
            next_look = now + SLICE_NS;
        }
        const int64_t left = wait->deadline_ns - now;
        futex_wait(number, seen, left < SLICE_NS ? left : SLICE_NS);
    }
    atomic_fetch_sub(&rank->sleepers, 1);
    return st;
}

lofi_status lofi__shm_wait_for(struct lofi__shm *shm, struct lofi__shm_wait *wait, int index,
                               uint32_t stage)
{
    const struct lofi__shm_rank *rank = lofi__segment_rank(&shm->segment, index);

    if (has_reached(rank, stage)) return LOFI_OK;
    const int64_t poll_ns = wait->turn->in_background ? POLL_BACKGROUND_NS : POLL_NS;
    if (!shm->crowded && poll_for(rank, stage, poll_ns)) return LOFI_OK;
    return sleep_for(shm, wait, index, stage);
}
