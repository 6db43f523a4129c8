/* SPDX-License-Identifier: MIT */
/*
 * Collectives over functions of the embedding program, which move bytes and nothing else.
 *
 * Reductions are computed here, in rank order, so that a sum over MPI has the bits of a sum over
 * shared memory; MPI_Allreduce would pick its own order. A large one is cut into a piece for each
 * rank (all_to_all, reduce, all_gather: 2 (n-1)/n of the bytes), a small one is gathered whole.
 * Scratch memory is bounded: data go through it in chunks.
 */
#include "core/error.h"
#include "core/mem.h"
#include "core/options.h"
#include "kernels/kernels.h"
#include "transport/transport.h"

#include <string.h>

/* A chunk of one rank's data; the scratch holds one from or for each rank, twice. */
#define CHUNK_BYTES ((size_t)256 << 10)
/* Up to this size data go in one message to all in place of two with pieces. */
#define WHOLE_BYTES ((size_t)4 << 10)

struct host {
    const struct lofi__members *members;
    lofi_host_functions call;
    const void **operand;
    char *sent, *got; /* members->count * CHUNK_BYTES each */
};

static void close_host(void *state, int forked)
{
    struct host *host = state;
    (void)forked;
    lofi__mem_destroy(host->got);
    lofi__mem_destroy(host->sent);
    lofi__mem_destroy(host->operand);
    lofi__mem_destroy(host);
}

static lofi_status open_host(const struct lofi__members *members, const lofi_comm_options *options,
                             void *parent, lofi_allgather_fn allgather, void *ctx, void **state)
{
    lofi_host_functions call = LOFI_HOST_FUNCTIONS_INIT;
    struct host *host = NULL;

    (void)parent, (void)allgather, (void)ctx;
    if (options->host == NULL) {
        lofi_set_error("the transport host needs options->host with an all_gather");
        return LOFI_INVALID;
    }
    lofi_status st =
        lofi__options_read(&call, sizeof call, options->host, "LOFI_HOST_FUNCTIONS_INIT");
    if (st != LOFI_OK) return st;
    if (call.all_gather == NULL) {
        lofi_set_error("the transport host needs an all_gather in options->host");
        return LOFI_INVALID;
    }
    host = lofi__mem_create(1, sizeof *host);
    if (host == NULL) return LOFI_NO_MEMORY;
    host->members = members;
    host->call = call;
    host->operand = lofi__mem_create((size_t)members->count, sizeof *host->operand);
    host->sent = lofi__mem_create((size_t)members->count, CHUNK_BYTES);
    host->got = lofi__mem_create((size_t)members->count, CHUNK_BYTES);
    if (host->operand == NULL || host->sent == NULL || host->got == NULL) {
        close_host(host, 0);
        return LOFI_NO_MEMORY;
    }
    *state = host;
    return LOFI_OK;
}

/* A failure of the host's own gets a sentence if it came without one. */
static lofi_status checked(const struct host *host, const char *what, lofi_status st,
                           unsigned errors_before)
{
    if (st == LOFI_OK || lofi__error_count() != errors_before) return st;
    lofi_set_error("the %s of the embedding program failed on rank %d", what,
                   host->members->label[host->members->rank]);
    return st;
}

static lofi_status host_all_gather(const struct host *host, const void *in, void *out, size_t bytes)
{
    const unsigned errors = lofi__error_count();
    return checked(host, "all_gather", host->call.all_gather(host->call.ctx, in, bytes, out),
                   errors);
}

/* A host without an all_to_all gets an all_gather for each rank: all see the pieces for it, and the
 * others drop them. */
static lofi_status host_all_to_all(const struct host *host, const char *in, char *out, size_t bytes)
{
    const int count = host->members->count, rank = host->members->rank;
    const unsigned errors = lofi__error_count();
    lofi_status st = LOFI_OK;

    if (host->call.all_to_all != NULL)
        return checked(host, "all_to_all", host->call.all_to_all(host->call.ctx, in, bytes, out),
                       errors);
    char *all = lofi__mem_create((size_t)count, bytes);
    if (all == NULL) return LOFI_NO_MEMORY;
    for (int to = 0; to < count && st == LOFI_OK; to++) {
        st = host_all_gather(host, in + (size_t)to * bytes, all, bytes);
        if (st == LOFI_OK && to == rank) memcpy(out, all, (size_t)count * bytes);
    }
    lofi__mem_destroy(all);
    return st;
}

static size_t chunk_count(const lofi_task *task)
{
    return CHUNK_BYTES / lofi_dtype_bytes(task->dtype);
}

static void fold(const struct host *host, const lofi_task *task, void *out, const char *slots,
                 size_t slot_bytes, size_t count)
{
    for (int rank = 0; rank < host->members->count; rank++)
        host->operand[rank] = slots + (size_t)rank * slot_bytes;
    lofi__kernels_get()->fold[task->op][task->dtype](out, host->operand, host->members->count,
                                                     task->factor, count);
}

/* Gathers chunk after chunk and hands it to `take`. */
typedef void (*take_fn)(const struct host *host, const lofi_task *task, size_t begin, size_t count);

static lofi_status gather_chunks(struct host *host, const lofi_task *task, take_fn take)
{
    const size_t each = lofi_dtype_bytes(task->dtype);
    lofi_status st = LOFI_OK;
    size_t count = 0;

    for (size_t begin = 0; begin < task->count && st == LOFI_OK; begin += count) {
        count = lofi__smaller(task->count - begin, chunk_count(task));
        st = host_all_gather(host, (const char *)task->in + begin * each, host->got, count * each);
        if (st == LOFI_OK) take(host, task, begin, count);
    }
    return st;
}

static void take_slots(const struct host *host, const lofi_task *task, size_t begin, size_t count)
{
    const size_t each = lofi_dtype_bytes(task->dtype);
    for (int rank = 0; rank < host->members->count; rank++)
        memcpy(lofi__out_slot(task, rank) + begin * each, host->got + (size_t)rank * count * each,
               count * each);
}

static void take_fold(const struct host *host, const lofi_task *task, size_t begin, size_t count)
{
    const size_t each = lofi_dtype_bytes(task->dtype);
    fold(host, task, (char *)task->out + begin * each, host->got, count * each, count);
}

static void take_slots_at_root(const struct host *host, const lofi_task *task, size_t begin,
                               size_t count)
{
    if (host->members->rank == task->root) take_slots(host, task, begin, count);
}

static void take_fold_at_root(const struct host *host, const lofi_task *task, size_t begin,
                              size_t count)
{
    if (host->members->rank == task->root) take_fold(host, task, begin, count);
}

static void take_root(const struct host *host, const lofi_task *task, size_t begin, size_t count)
{
    const size_t each = lofi_dtype_bytes(task->dtype);
    memcpy((char *)task->out + begin * each, host->got + (size_t)task->root * count * each,
           count * each);
}

/* Reduces one chunk, a piece on each rank; the last pieces may be short, and are sent full size. */
static lofi_status reduce_chunk(struct host *host, const lofi_task *task, size_t begin,
                                size_t count)
{
    const size_t each = lofi_dtype_bytes(task->dtype), ranks = (size_t)host->members->count;
    const size_t piece = (count + ranks - 1) / ranks;
    char *out = (char *)task->out + begin * each;

    memcpy(host->sent, (const char *)task->in + begin * each, count * each);
    lofi_status st = host_all_to_all(host, host->sent, host->got, piece * each);
    if (st != LOFI_OK) return st;
    fold(host, task, host->sent, host->got, piece * each, piece);
    st = host_all_gather(host, host->sent, host->got, piece * each);
    if (st == LOFI_OK) memcpy(out, host->got, count * each);
    return st;
}

static lofi_status all_reduce(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    struct host *host = state;
    /* The scratch has to hold the pieces of a whole chunk also when they are rounded up. */
    const size_t chunk = chunk_count(task) * (size_t)host->members->count - 64;
    lofi_status st = LOFI_OK;
    size_t count = 0;

    (void)turn;
    if (lofi__slot_bytes(task) <= WHOLE_BYTES) return gather_chunks(host, task, take_fold);
    for (size_t begin = 0; begin < task->count && st == LOFI_OK; begin += count) {
        count = lofi__smaller(task->count - begin, chunk);
        st = reduce_chunk(host, task, begin, count);
    }
    return st;
}

static lofi_status reduce(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    (void)turn;
    return gather_chunks(state, task, take_fold_at_root);
}

static lofi_status gather(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    (void)turn;
    return gather_chunks(state, task, take_slots_at_root);
}

static lofi_status all_gather(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    (void)turn;
    return gather_chunks(state, task, take_slots);
}

static lofi_status broadcast(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    struct host *host = state;
    const unsigned errors = lofi__error_count();

    (void)turn;
    if (host->call.broadcast != NULL)
        return checked(
            host, "broadcast",
            host->call.broadcast(host->call.ctx, task->out, lofi__slot_bytes(task), task->root),
            errors);
    lofi_task given = *task;
    given.in = task->out;
    return gather_chunks(host, &given, take_root);
}

/* Sends the slot for each rank to it, chunk by chunk, by way of `sent` and `got`. */
static lofi_status exchange(struct host *host, const lofi_task *task, take_fn take)
{
    const size_t each = lofi_dtype_bytes(task->dtype);
    lofi_status st = LOFI_OK;
    size_t count = 0;

    for (size_t begin = 0; begin < task->count && st == LOFI_OK; begin += count) {
        count = lofi__smaller(task->count - begin, chunk_count(task));
        for (int rank = 0; rank < host->members->count; rank++)
            memcpy(host->sent + (size_t)rank * count * each,
                   lofi__in_slot(task, rank) + begin * each, count * each);
        st = host_all_to_all(host, host->sent, host->got, count * each);
        if (st == LOFI_OK) take(host, task, begin, count);
    }
    return st;
}

static lofi_status reduce_scatter(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    (void)turn;
    return exchange(state, task, take_fold);
}

static lofi_status all_to_all(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    (void)turn;
    return exchange(state, task, take_slots);
}

static lofi_status barrier(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    struct host *host = state;
    (void)task, (void)turn;
    return host_all_gather(host, host->sent, host->got, 1);
}

const struct lofi__transport lofi__transport_host = {
    .name = "host",
    .open = open_host,
    .run = {[LOFI_ALL_REDUCE] = all_reduce,
            [LOFI_REDUCE] = reduce,
            [LOFI_BROADCAST] = broadcast,
            [LOFI_ALL_GATHER] = all_gather,
            [LOFI_GATHER] = gather,
            [LOFI_REDUCE_SCATTER] = reduce_scatter,
            [LOFI_ALL_TO_ALL] = all_to_all,
            [LOFI_BARRIER] = barrier},
    .close = close_host,
};
