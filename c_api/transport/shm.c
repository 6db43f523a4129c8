/* SPDX-License-Identifier: MIT */
/*
 * Collectives in the memory that processes of one machine share.
 *
 * Data goes through the slots in chunks that stay in a core's cache: a rank copies a chunk of its
 * input into its slot, and the others read it there. A chunk is a stage. Stages are numbered from
 * the creation of the communicator on, the same on every rank, because every rank knows from the
 * task alone how many a collective takes. Stage s uses slot s % 2 of each rank. In stage s a rank
 *
 *   1. begins: waits until every rank has published stage s-1;
 *   2. writes slot s % 2 of its own, if it gives something;
 *   3. publishes s;
 *   4. waits until those from which it reads have published s, and reads their slots s % 2.
 *
 * Why two slots suffice. A slot is written in stage s and again in s+2. Whoever reads it in stage s
 * does so, in its program order, before it publishes s+1 (point 4 before the next point 3). The
 * writer begins s+2 only after all have published s+1. So every read of s is over when s+2 is
 * written; the acquire of the wait pairs with the release of the publication, which orders the two
 * across cores. One slot would not do: after stage s the writer may not write again before it knows
 * that the others have read, which they say only with s+1. The same argument covers the records of
 * calls, and for data that is so small that it lies with them: both are in the record of a stage, by
 * its parity.
 *
 * And no more than one wait for each chunk is paid for: the wait of a beginning is over before it
 * starts unless the other rank is more than a whole chunk behind.
 *
 * All-reduce. Flat: each rank reduces everything from everybody's slots, one stage a chunk. Its own
 * operand comes from its own buffer, which the copy has just brought into the cache. With two ranks
 * nothing moves fewer bytes. Split: with more ranks, each reduces its piece of the chunk and hands
 * the result on in the slot of the next stage: two stages, (n-1)/n of a chunk read twice instead
 * of n-1 chunks once. (A tree of pairs would read log n chunks, but rounds in another order.) Both
 * sum in rank order, by the same kernel: the same bits.
 *
 * The idea of cache-sized chunks with two alternating buffers is that of DeepSpeed's
 * csrc/cpu/comm/shm.cpp (PRs 4049, 5320), which fixes the number of ranks and knows no errors.
 */
#define _GNU_SOURCE
#include "core/mem.h"
#include "kernels/kernels.h"
#include "transport/clock.h"
#include "transport/shm_open.h"
#include "transport/shm_pace.h"

#include <string.h>

/* Copying more than this takes so long that a deadline must count from the beginning. */
#define TIMED_BYTES ((size_t)64 << 10)

/* One collective on its way. */
struct run {
    struct lofi__shm *shm;
    const lofi_task *task;
    struct lofi__shm_wait wait;
    int rank, count;      /* of this rank; ranks */
    size_t bytes;         /* of an element */
    int is_inline;        /* the data lies in the records of stages, not in slots */
    uint32_t first_stage; /* of this collective: calls are compared in it */
};

static lofi_status start(struct run *run, struct lofi__shm *shm, const lofi_task *task,
                         const struct lofi__turn *turn)
{
    *run = (struct run){.shm = shm,
                        .task = task,
                        .wait = {.turn = turn,
                                 .collective = task->collective,
                                 .timeout_ms = task->timeout_ms,
                                 .deadline_ns = lofi__slot_bytes(task) > TIMED_BYTES
                                                    ? lofi__after_ms(task->timeout_ms)
                                                    : 0},
                        .rank = shm->members->rank,
                        .count = shm->members->count,
                        .bytes = lofi_dtype_bytes(task->dtype),
                        .first_stage = shm->stage + 1};
    return lofi__shm_check(shm, &run->wait);
}

/* ---- ranks in different collectives ---------------------------------------------------------- */

/* Notes which collective this rank is in. The others see it with its first stage. */
static void enter_call(struct run *run)
{
    const lofi_task *task = run->task;
    struct lofi__shm_call call = {.number = ++run->shm->call_number,
                                  .collective = (uint8_t)task->collective,
                                  .dtype = (uint8_t)task->dtype,
                                  .op = (uint8_t)task->op,
                                  .root = (uint32_t)task->root,
                                  .count = task->count};

    memcpy(&call.factor, &task->factor, sizeof call.factor);
    lofi__segment_stage(&run->shm->segment, run->rank, run->first_stage)->call = call;
    run->shm->call_stage = run->first_stage;
    run->shm->to_compare = 1;
}

/* Breaks the communicator if the collective of this number is another one on `rank` than here. */
static lofi_status compare_call(struct run *run, int rank)
{
    struct lofi__shm *shm = run->shm;
    const struct lofi__shm_stage *ours =
        lofi__segment_stage(&shm->segment, run->rank, shm->call_stage);
    const struct lofi__shm_stage *theirs =
        lofi__segment_stage(&shm->segment, rank, shm->call_stage);

    if (memcmp(&ours->call, &theirs->call, sizeof ours->call) == 0) return LOFI_OK;
    return lofi__shm_fail(shm, &run->wait, LOFI__SHM_MISMATCH, rank);
}

/* A rank that only gives waits for nobody in the first stage, and compares here, at the beginning
 * of the next one: of this collective, or of the one after. */
static lofi_status compare_late(struct run *run)
{
    lofi_status st = LOFI_OK;

    for (int rank = 0; rank < run->count && run->shm->to_compare && st == LOFI_OK; rank++)
        st = compare_call(run, rank);
    run->shm->to_compare = 0;
    return st;
}

/* A hint: the cache line will be written soon. */
static inline void lofi__fetch_to_write(const void *line)
{
#if defined(__x86_64__)
    __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)line));
#else
    __builtin_prefetch(line, 1);
#endif
}

/* ---- stages ---------------------------------------------------------------------------------- */

static char *slot(const struct run *run, int rank, uint32_t stage)
{
    if (run->is_inline) return lofi__segment_stage(&run->shm->segment, rank, stage)->data;
    return lofi__segment_slot(&run->shm->segment, rank, stage % LOFI__SHM_SLOTS);
}

/* Begins a stage (point 1 at the head of this file) and gives its number. */
static lofi_status begin_stage(struct run *run, uint32_t *stage)
{
    struct lofi__shm *shm = run->shm;
    lofi_status st = LOFI_OK;

    for (int rank = 0; rank < run->count && st == LOFI_OK; rank++)
        if (rank != run->rank) st = lofi__shm_wait_for(shm, &run->wait, rank, shm->stage);
    if (st == LOFI_OK) st = compare_late(run);
    *stage = shm->stage + 1;
    if (st == LOFI_OK && *stage == run->first_stage) enter_call(run);
    return st;
}

/* Waits until `rank` has published the stage (point 4), and compares the collectives. */
static lofi_status wait_for(struct run *run, int rank, uint32_t stage)
{
    lofi_status st = lofi__shm_wait_for(run->shm, &run->wait, rank, stage);
    return st == LOFI_OK && stage == run->first_stage ? compare_call(run, rank) : st;
}

/* Fetches for writing what this rank writes first in the next stage. All have read it: those who
 * have published this stage are done with the one before, in which it was written. Small
 * collectives that follow each other need not wait for the line then. */
static void fetch_next(const struct run *run, uint32_t stage)
{
    lofi__fetch_to_write(lofi__segment_stage(&run->shm->segment, run->rank, stage));
    if (!run->is_inline) lofi__fetch_to_write(slot(run, run->rank, stage));
}

static lofi_status wait_for_all(struct run *run, uint32_t stage)
{
    lofi_status st = LOFI_OK;
    for (int rank = 0; rank < run->count && st == LOFI_OK; rank++)
        if (rank != run->rank) st = wait_for(run, rank, stage);
    run->shm->to_compare = 0;
    fetch_next(run, stage + 1);
    return st;
}

/* The number of elements, of one slot of the task, that go into a stage if the slot in memory has
 * `parts` parts. */
static size_t chunk_count(const struct run *run, int parts)
{
    /* Parts begin at a line. Divisions take as long as the whole of a small collective, and are
     * of no use here: lines and elements are powers of two. */
    size_t bytes = run->shm->segment.header->slot_bytes;
    if (parts > 1) bytes /= (size_t)parts;
    return (bytes & ~(size_t)(LOFI__SHM_LINE - 1)) >> __builtin_ctzl(run->bytes);
}

/* Smaller chunks are not worth a thought about caches. */
#define PACED_BYTES ((size_t)64 << 10)

/* ---- movers: what a rank writes and reads in a stage of `count` elements from `begin` -------- */

struct mover {
    int parted; /* 1: a slot in memory has a part for each rank */
    int to_root, from_root;
    void (*write)(struct run *run, uint32_t stage, size_t begin, size_t count);
    void (*read)(struct run *run, uint32_t stage, size_t begin, size_t count);
};

/* The ranks that give, and those that get. */
static int gives(const struct run *run, const struct mover *mover)
{
    return mover->from_root ? run->rank == run->task->root
                            : !mover->to_root || run->rank != run->task->root;
}

static int gets(const struct run *run, const struct mover *mover)
{
    return mover->to_root ? run->rank == run->task->root
                          : !mover->from_root || run->rank != run->task->root;
}

static lofi_status wait_for_givers(struct run *run, const struct mover *mover, uint32_t stage)
{
    return mover->from_root ? wait_for(run, run->task->root, stage) : wait_for_all(run, stage);
}

static lofi_status move(void *state, const lofi_task *task, const struct lofi__turn *turn,
                        const struct mover *mover)
{
    struct run run;
    uint32_t stage = 0;
    size_t begin = 0;

    lofi_status st = start(&run, state, task, turn);
    run.is_inline = !mover->parted && lofi__slot_bytes(task) <= LOFI__SHM_INLINE;
    const size_t chunk = chunk_count(&run, mover->parted ? run.count : 1);
    do { /* once for no elements too: there is a stage in which calls are compared */
        const size_t count = lofi__smaller(task->count - begin, chunk);
        if (st == LOFI_OK) st = begin_stage(&run, &stage);
        if (st != LOFI_OK) return st;
        if (gives(&run, mover)) mover->write(&run, stage, begin, count);
        lofi__shm_publish(run.shm);
        if (gets(&run, mover)) {
            st = wait_for_givers(&run, mover, stage);
            if (st != LOFI_OK) return st;
            mover->read(&run, stage, begin, count);
        }
        begin += count;
    } while (begin < task->count);
    return LOFI_OK;
}

/* Copies data out of a slot. */
static void copy(char *out, const char *in, size_t bytes)
{
    if (out != in && bytes > 0) memcpy(out, in, bytes);
}

/* Copies data to the beginning of a slot, or of a part of one: both begin a line. */
static void put(const struct run *run, char *out, const char *in, size_t bytes)
{
    struct lofi__shm_pace *pace = &run->shm->pace;

    if (bytes < PACED_BYTES || run->shm->crowded) { /* too small, or too few cores, to be timed */
        if (bytes > 0) memcpy(out, in, bytes);
        return;
    }
    const int64_t begin = lofi__now_ns();
    if (pace->way == 1)
        lofi__kernels_get()->stream(out, in, bytes);
    else
        memcpy(out, in, bytes);
    lofi__shm_pace_note(pace, lofi__now_ns() - begin, bytes);
}

/* The part for `rank` in a slot that has one for each. */
static char *part(const struct run *run, int owner, int rank, uint32_t stage)
{
    return slot(run, owner, stage) + (size_t)rank * chunk_count(run, run->count) * run->bytes;
}

static void write_own(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    put(run, slot(run, run->rank, stage), (const char *)run->task->in + begin * run->bytes,
        count * run->bytes);
}

static void write_root(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    put(run, slot(run, run->rank, stage), (const char *)run->task->out + begin * run->bytes,
        count * run->bytes);
}

static void write_parts(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    for (int rank = 0; rank < run->count; rank++)
        if (rank != run->rank)
            put(run, part(run, run->rank, rank, stage),
                lofi__in_slot(run->task, rank) + begin * run->bytes, count * run->bytes);
}

static void read_root(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    copy((char *)run->task->out + begin * run->bytes, slot(run, run->task->root, stage),
         count * run->bytes);
}

/* Reads the slots of all ranks, one after another. */
static void read_all(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    const size_t offset = begin * run->bytes, bytes = count * run->bytes;

    for (int rank = 0; rank < run->count; rank++) {
        const char *from =
            rank == run->rank ? (const char *)run->task->in + offset : slot(run, rank, stage);
        copy(lofi__out_slot(run->task, rank) + offset, from, bytes);
    }
}

static void read_parts(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    const size_t offset = begin * run->bytes, bytes = count * run->bytes;

    for (int rank = 0; rank < run->count; rank++) {
        const char *from = rank == run->rank ? lofi__in_slot(run->task, rank) + offset
                                             : part(run, rank, run->rank, stage);
        copy(lofi__out_slot(run->task, rank) + offset, from, bytes);
    }
}

#define FEW_ELEMENTS 31

static void fold(struct run *run, void *out, const void *const *in, size_t count)
{
    const lofi_task *task = run->task;
    /* What does not fill a vector is handled faster one by one, with the same bits. */
    const int is_few = count <= FEW_ELEMENTS && task->dtype != LOFI_F16 && task->dtype != LOFI_BF16;
    const struct lofi__kernels *kernels = is_few ? &lofi__kernels_scalar : lofi__kernels_get();
    kernels->fold[task->op][task->dtype](out, in, run->count, task->factor, count);
}

static void fold_all(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    const void **in = run->shm->operand;

    for (int rank = 0; rank < run->count; rank++)
        in[rank] = slot(run, rank, stage);
    in[run->rank] = (const char *)run->task->in + begin * run->bytes;
    fold(run, (char *)run->task->out + begin * run->bytes, in, count);
}

static void fold_parts(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    const void **in = run->shm->operand;

    for (int rank = 0; rank < run->count; rank++)
        in[rank] = part(run, rank, run->rank, stage);
    in[run->rank] = lofi__in_slot(run->task, run->rank) + begin * run->bytes;
    fold(run, (char *)run->task->out + begin * run->bytes, in, count);
}

static lofi_status broadcast(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    static const struct mover mover = {.from_root = 1, .write = write_root, .read = read_root};
    return move(state, task, turn, &mover);
}

static lofi_status reduce(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    static const struct mover mover = {.to_root = 1, .write = write_own, .read = fold_all};
    return move(state, task, turn, &mover);
}

static lofi_status gather(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    static const struct mover mover = {.to_root = 1, .write = write_own, .read = read_all};
    return move(state, task, turn, &mover);
}

static lofi_status all_gather(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    static const struct mover mover = {.write = write_own, .read = read_all};
    return move(state, task, turn, &mover);
}

static lofi_status reduce_scatter(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    static const struct mover mover = {.parted = 1, .write = write_parts, .read = fold_parts};
    return move(state, task, turn, &mover);
}

static lofi_status all_to_all(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    static const struct mover mover = {.parted = 1, .write = write_parts, .read = read_parts};
    return move(state, task, turn, &mover);
}

static void write_nothing(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    (void)run, (void)stage, (void)begin, (void)count;
}

static lofi_status barrier(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    static const struct mover mover = {.write = write_nothing, .read = write_nothing};
    return move(state, task, turn, &mover);
}

/* ---- all-reduce ------------------------------------------------------------------------------ */

/* Up to so many bytes a second stage costs more than the reading that it saves. */
#define FLAT_BYTES ((size_t)8 << 10)

static lofi_status all_reduce_flat(void *state, const lofi_task *task,
                                   const struct lofi__turn *turn)
{
    static const struct mover mover = {.write = write_own, .read = fold_all};
    return move(state, task, turn, &mover);
}

/* The element at which the piece of `rank` begins in a chunk of `count`; for a rank past the last
 * one, the chunk's end. */
static size_t piece_begin(const struct run *run, int rank, size_t count)
{
    const size_t line = LOFI__SHM_LINE / run->bytes;
    const size_t lines = (count + line - 1) / line;
    return lofi__smaller(lines * (size_t)rank / (size_t)run->count * line, count);
}

/* Stage one: give the others their pieces, reduce the own one. */
static void write_others(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    const size_t from = piece_begin(run, run->rank, count);
    const size_t to = piece_begin(run, run->rank + 1, count);
    const char *in = (const char *)run->task->in + begin * run->bytes;
    char *out = slot(run, run->rank, stage);

    put(run, out, in, from * run->bytes);
    put(run, out + to * run->bytes, in + to * run->bytes, (count - to) * run->bytes);
}

static void reduce_piece(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    const size_t from = piece_begin(run, run->rank, count);
    const size_t size = piece_begin(run, run->rank + 1, count) - from;
    const void **in = run->shm->operand;

    for (int rank = 0; rank < run->count; rank++)
        in[rank] = slot(run, rank, stage) + from * run->bytes;
    in[run->rank] = (const char *)run->task->in + (begin + from) * run->bytes;
    fold(run, (char *)run->task->out + (begin + from) * run->bytes, in, size);
}

/* Stage two: give the result of the own piece, take those of the others. */
static void write_piece(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    const size_t from = piece_begin(run, run->rank, count);
    const size_t size = piece_begin(run, run->rank + 1, count) - from;

    put(run, slot(run, run->rank, stage) + from * run->bytes,
        (const char *)run->task->out + (begin + from) * run->bytes, size * run->bytes);
}

static void read_pieces(struct run *run, uint32_t stage, size_t begin, size_t count)
{
    for (int rank = 0; rank < run->count; rank++) {
        const size_t from = piece_begin(run, rank, count);
        const size_t size = piece_begin(run, rank + 1, count) - from;
        if (rank != run->rank)
            memcpy((char *)run->task->out + (begin + from) * run->bytes,
                   slot(run, rank, stage) + from * run->bytes, size * run->bytes);
    }
}

static lofi_status all_reduce_split(void *state, const lofi_task *task,
                                    const struct lofi__turn *turn)
{
    struct run run;
    uint32_t stage = 0;

    lofi_status st = start(&run, state, task, turn);
    const size_t chunk = chunk_count(&run, 1);
    for (size_t begin = 0; begin < task->count && st == LOFI_OK; begin += chunk) {
        const size_t count = lofi__smaller(task->count - begin, chunk);

        st = begin_stage(&run, &stage);
        if (st != LOFI_OK) return st;
        write_others(&run, stage, begin, count);
        lofi__shm_publish(run.shm);
        st = wait_for_all(&run, stage);
        if (st != LOFI_OK) return st;
        reduce_piece(&run, stage, begin, count);

        st = begin_stage(&run, &stage); /* does not wait: wait_for_all has */
        if (st != LOFI_OK) return st;
        write_piece(&run, stage, begin, count);
        lofi__shm_publish(run.shm);
        st = wait_for_all(&run, stage);
        if (st == LOFI_OK) read_pieces(&run, stage, begin, count);
    }
    return st;
}

static lofi_status all_reduce(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    const struct lofi__shm *shm = state;
    const int flat = shm->members->count == 2 || lofi__slot_bytes(task) <= FLAT_BYTES;
    return (flat ? all_reduce_flat : all_reduce_split)(state, task, turn);
}

/* ---- the table ------------------------------------------------------------------------------- */

static lofi_status open_shm(const struct lofi__members *members, const lofi_comm_options *options,
                            void *parent, lofi_allgather_fn allgather, void *ctx, void **state)
{
    (void)parent;
    return lofi__shm_open(members, options, allgather, ctx, state);
}

static void abort_shm(void *state)
{
    struct lofi__shm *shm = state;
    lofi__shm_break(shm, LOFI__SHM_ABORTED, shm->members->rank, 0);
}

const struct lofi__transport lofi__transport_shm = {
    .name = "shm",
    .open = open_shm,
    .run = {[LOFI_ALL_REDUCE] = all_reduce,
            [LOFI_REDUCE] = reduce,
            [LOFI_BROADCAST] = broadcast,
            [LOFI_ALL_GATHER] = all_gather,
            [LOFI_GATHER] = gather,
            [LOFI_REDUCE_SCATTER] = reduce_scatter,
            [LOFI_ALL_TO_ALL] = all_to_all,
            [LOFI_BARRIER] = barrier},
    .abort = abort_shm,
    .close = lofi__shm_close,
};
