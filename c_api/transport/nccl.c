/* SPDX-License-Identifier: MIT */
/*
 * Collectives on device memory, by NCCL.
 *
 * A task is issued with an event on the caller's stream, runs on the communicator's own stream
 * behind that event, and is done when this stream is: all that is enqueued anywhere afterwards sees
 * it. A collective that only moves bytes goes to NCCL as bytes, whatever its dtype. Where the slots
 * of a rank lie apart, a group of calls does what one call does for slots side by side.
 */
#define _GNU_SOURCE
#include "core/collective.h"
#include "kernels/halffloat.h"
#include "transport/clock.h"
#include "transport/nccl_comm.h"

#include <stdio.h>
#include <string.h>

#define PIECE_BYTES ((size_t)16 << 10) /* of one rank alone: see scale */

/* A task under way, in NCCL's words. */
struct run {
    const struct lofi__nccl_library *call;
    const struct lofi__driver *cuda;
    const struct lofi__nccl *nccl;
    const lofi_task *task;
    int rank, count;
    size_t slot_bytes;
    lofi__nccl_type type; /* of reductions, as is `op` */
    lofi__nccl_op op;
    lofi__nccl_comm comm;
    lofi__cu_stream stream;
};

static const lofi__nccl_type types[LOFI_DTYPE_COUNT] = {
    [LOFI_F64] = LOFI__NCCL_FLOAT64,   [LOFI_F32] = LOFI__NCCL_FLOAT32,
    [LOFI_F16] = LOFI__NCCL_FLOAT16,   [LOFI_BF16] = LOFI__NCCL_BFLOAT16,
    [LOFI_BYTES] = LOFI__NCCL_UINT8,   [LOFI_I8] = LOFI__NCCL_INT8,
    [LOFI_U8] = LOFI__NCCL_UINT8,      [LOFI_I32] = LOFI__NCCL_INT32,
    [LOFI_I64] = LOFI__NCCL_INT64,     [LOFI_F8_E4M3] = LOFI__NCCL_UINT8,
    [LOFI_F8_E5M2] = LOFI__NCCL_UINT8,
};

/* ---- before a task is queued ----------------------------------------------------------------- */

static lofi_status check_op(const lofi_task *task)
{
    if (!lofi__reduces(task->collective)) return LOFI_OK;
    if (task->op != LOFI_BAND && task->op != LOFI_BOR && task->op != LOFI_BXOR) return LOFI_OK;
    lofi_set_error("%s with %s of %s: NCCL has no operations on bits; use the transport shm or "
                   "host, on host memory",
                   lofi_collective_name(task->collective), lofi_op_name(task->op),
                   lofi_dtype_name(task->dtype));
    return LOFI_UNSUPPORTED;
}

static int is_at_root(const struct lofi__nccl *nccl, const lofi_task *task)
{
    return task->root == nccl->members->rank;
}

static int gives(const lofi_task *task)
{
    return task->collective != LOFI_BROADCAST;
}

static int gets(const struct lofi__nccl *nccl, const lofi_task *task)
{
    const int to_root = task->collective == LOFI_REDUCE || task->collective == LOFI_GATHER;
    return !to_root || is_at_root(nccl, task);
}

static lofi_status check_buffers(const struct lofi__nccl *nccl, const lofi_task *task,
                                 const char *side, const void *data, const void *const *list)
{
    char what[64];
    lofi_status st = LOFI_OK;

    snprintf(what, sizeof what, "%s: %s", lofi_collective_name(task->collective), side);
    if (list == NULL) return lofi__nccl_check_data(nccl, what, data);
    for (int i = 0; i < nccl->members->count && st == LOFI_OK; i++)
        st = lofi__nccl_check_data(nccl, what, list[i]);
    return st;
}

static int overlap(const char *a, const char *b, size_t bytes)
{
    const uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return x < y + bytes && y < x + bytes;
}

/* Refuses an all_to_all in place: a slot would be written by one rank while it is sent to
 * another. */
static lofi_status check_exchange(const struct lofi__nccl *nccl, const lofi_task *task)
{
    for (int rank = 0; rank < nccl->members->count; rank++) {
        if (rank == nccl->members->rank ||
            !overlap(lofi__in_slot(task, rank), lofi__out_slot(task, rank), lofi__slot_bytes(task)))
            continue;
        lofi_set_error("all_to_all in place: NCCL needs memory of its own for what it gets; give "
                       "another output");
        return LOFI_UNSUPPORTED;
    }
    return LOFI_OK;
}

static lofi_status check(const struct lofi__nccl *nccl, const lofi_task *task)
{
    if (task->collective == LOFI_BARRIER) return LOFI_OK;
    lofi_status st = check_op(task);
    if (task->count == 0) return st;
    if (st == LOFI_OK && gives(task))
        st = check_buffers(nccl, task, "input", task->in, task->in_list);
    if (st == LOFI_OK && gets(nccl, task))
        st = check_buffers(nccl, task, "output", task->out, (const void *const *)task->out_list);
    if (st == LOFI_OK && task->collective == LOFI_ALL_TO_ALL) st = check_exchange(nccl, task);
    return st;
}

static lofi_status issue(void *state, const lofi_task *task, void **ticket)
{
    struct lofi__nccl *nccl = state;
    lofi__cu_event event = NULL;

    lofi_status st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    st = check(nccl, task);
    if (st == LOFI_OK) st = lofi__nccl_mark(nccl, &event);
    lofi__nccl_leave(nccl);
    if (st == LOFI_OK) *ticket = event;
    return st;
}

static void retire(void *state, void *ticket)
{
    struct lofi__nccl *nccl = state;

    const int entered = lofi__nccl_enter(nccl) == LOFI_OK;
    lofi__nccl_unmark(nccl, ticket);
    if (entered) lofi__nccl_leave(nccl);
}

/* ---- operations ------------------------------------------------------------------------------ */

static int is_scaled(const struct run *run)
{
    return lofi__reduces(run->task->collective) && run->task->op == LOFI_PREMUL_SUM;
}

/* The factor in the data's type, as NCCL multiplies. */
static lofi__nccl_result make_factor(struct run *run)
{
    const double factor = run->task->factor;
    union {
        double f64;
        float f32;
        uint16_t half;
        int8_t i8;
        uint8_t u8;
        int32_t i32;
        int64_t i64;
    } scalar = {0};

    switch (run->task->dtype) {
    case LOFI_F64:
        scalar.f64 = factor;
        break;
    case LOFI_F32:
        scalar.f32 = (float)factor;
        break;
    case LOFI_F16:
        scalar.half = lofi__f64_to_f16(factor);
        break;
    case LOFI_BF16:
        scalar.half = lofi__f64_to_bf16(factor);
        break;
    case LOFI_I8:
        scalar.i8 = (int8_t)(int64_t)factor;
        break;
    case LOFI_U8:
        scalar.u8 = (uint8_t)(int64_t)factor;
        break;
    case LOFI_I32:
        scalar.i32 = (int32_t)(int64_t)factor;
        break;
    default:
        scalar.i64 = (int64_t)factor;
        break;
    }
    return run->call->RedOpCreatePreMulSum(&run->op, &scalar, run->type, LOFI__NCCL_SCALAR_HOST,
                                           run->comm);
}

static lofi__nccl_result make_op(struct run *run)
{
    static const lofi__nccl_op ops[LOFI_OP_COUNT] = {
        [LOFI_SUM] = LOFI__NCCL_SUM,         [LOFI_AVG] = LOFI__NCCL_AVG,
        [LOFI_PRODUCT] = LOFI__NCCL_PRODUCT, [LOFI_MIN] = LOFI__NCCL_MIN,
        [LOFI_MAX] = LOFI__NCCL_MAX,
    };

    run->type = types[run->task->dtype];
    if (run->task->op == LOFI_PREMUL_SUM) return make_factor(run);
    run->op = ops[run->task->op];
    if (run->count == 1 && run->op == LOFI__NCCL_AVG) run->op = LOFI__NCCL_SUM; /* see scale */
    return 0;
}

/* ---- collectives ----------------------------------------------------------------------------- */

/* Ends a group, of which one call may have failed: the first error counts. */
static lofi__nccl_result end_group(const struct run *run, lofi__nccl_result result)
{
    const lofi__nccl_result ended = run->call->GroupEnd();
    return result != 0 && result != LOFI__NCCL_IN_PROGRESS ? result : ended;
}

static int is_fine(lofi__nccl_result result)
{
    return result == 0 || result == LOFI__NCCL_IN_PROGRESS;
}

/* Multiplies, which is all that a sum with a factor does for one rank alone. Before 2.29.7 NCCL
 * loses its last elements, and those of a mean (NVIDIA/nccl issue 1950): it takes a block for each
 * 16 KiB, at most 32 of them, and rounds down what each one does. Whole pieces of 16 KiB divide
 * evenly, and the rest has one block to itself. */
static lofi__nccl_result scale(const struct run *run)
{
    const char *in = lofi__in_slot(run->task, 0);
    char *out = run->task->out;
    const size_t each = lofi_dtype_bytes(run->task->dtype);
    const size_t rest = run->slot_bytes % PIECE_BYTES, whole = run->slot_bytes - rest;

    lofi__nccl_result result = run->call->GroupStart();
    if (result != 0) return result;
    if (whole > 0)
        result =
            run->call->AllReduce(in, out, whole / each, run->type, run->op, run->comm, run->stream);
    if (rest > 0 && is_fine(result))
        result = run->call->AllReduce(in + whole, out + whole, rest / each, run->type, run->op,
                                      run->comm, run->stream);
    return end_group(run, result);
}

static lofi__nccl_result all_reduce(const struct run *run)
{
    const lofi_task *task = run->task;
    return run->call->AllReduce(task->in, task->out, task->count, run->type, run->op, run->comm,
                                run->stream);
}

static lofi__nccl_result reduce(const struct run *run)
{
    const lofi_task *task = run->task;
    return run->call->Reduce(task->in, run->rank == task->root ? task->out : NULL, task->count,
                             run->type, run->op, task->root, run->comm, run->stream);
}

static lofi__nccl_result broadcast(const struct run *run)
{
    const lofi_task *task = run->task;
    return run->call->Broadcast(task->out, task->out, run->slot_bytes, LOFI__NCCL_UINT8, task->root,
                                run->comm, run->stream);
}

static lofi__nccl_result all_gather(const struct run *run)
{
    const lofi_task *task = run->task;

    if (task->out_list == NULL)
        return run->call->AllGather(task->in, task->out, run->slot_bytes, LOFI__NCCL_UINT8,
                                    run->comm, run->stream);
    lofi__nccl_result result = run->call->GroupStart();
    if (result != 0) return result;
    for (int root = 0; root < run->count && is_fine(result); root++) {
        void *out = lofi__out_slot(task, root);
        result = run->call->Broadcast(root == run->rank ? task->in : out, out, run->slot_bytes,
                                      LOFI__NCCL_UINT8, root, run->comm, run->stream);
    }
    return end_group(run, result);
}

static lofi__nccl_result reduce_scatter(const struct run *run)
{
    const lofi_task *task = run->task;

    if (task->in_list == NULL)
        return run->call->ReduceScatter(task->in, task->out, task->count, run->type, run->op,
                                        run->comm, run->stream);
    lofi__nccl_result result = run->call->GroupStart();
    if (result != 0) return result;
    for (int root = 0; root < run->count && is_fine(result); root++)
        result = run->call->Reduce(lofi__in_slot(task, root), root == run->rank ? task->out : NULL,
                                   task->count, run->type, run->op, root, run->comm, run->stream);
    return end_group(run, result);
}

/* Copies the slot that a rank gives itself. */
static lofi__nccl_result copy_own(const struct run *run, const void *in, void *out)
{
    if (in == out) return 0;
    return run->cuda->MemcpyAsync((lofi__cu_address)(uintptr_t)out, (lofi__cu_address)(uintptr_t)in,
                                  run->slot_bytes, run->stream) == 0
               ? 0
               : LOFI__NCCL_CUDA_ERROR;
}

static lofi__nccl_result send_to(const struct run *run, const void *in, int rank)
{
    return run->call->Send(in, run->slot_bytes, LOFI__NCCL_UINT8, rank, run->comm, run->stream);
}

static lofi__nccl_result receive_from(const struct run *run, int rank)
{
    return run->call->Recv(lofi__out_slot(run->task, rank), run->slot_bytes, LOFI__NCCL_UINT8, rank,
                           run->comm, run->stream);
}

static lofi__nccl_result gather(const struct run *run)
{
    const lofi_task *task = run->task;

    if (run->rank != task->root) return send_to(run, task->in, task->root);
    lofi__nccl_result result = copy_own(run, task->in, lofi__out_slot(task, run->rank));
    if (result == 0) result = run->call->GroupStart();
    if (result != 0) return result;
    for (int from = 0; from < run->count && is_fine(result); from++)
        if (from != run->rank) result = receive_from(run, from);
    return end_group(run, result);
}

static lofi__nccl_result all_to_all(const struct run *run)
{
    const lofi_task *task = run->task;

    lofi__nccl_result result =
        copy_own(run, lofi__in_slot(task, run->rank), lofi__out_slot(task, run->rank));
    if (result == 0) result = run->call->GroupStart();
    if (result != 0) return result;
    for (int rank = 0; rank < run->count && is_fine(result); rank++) {
        if (rank == run->rank) continue;
        result = send_to(run, lofi__in_slot(task, rank), rank);
        if (is_fine(result)) result = receive_from(run, rank);
    }
    return end_group(run, result);
}

static lofi__nccl_result barrier(const struct run *run)
{
    void *word = (void *)(uintptr_t)run->nccl->word;
    return run->call->AllReduce(word, word, 1, LOFI__NCCL_INT32, LOFI__NCCL_SUM, run->comm,
                                run->stream);
}

/* ---- running --------------------------------------------------------------------------------- */

typedef lofi__nccl_result (*enqueue_fn)(const struct run *run);

static lofi_status enqueue(struct lofi__nccl *nccl, struct run *run, const char *where,
                           enqueue_fn fn)
{
    lofi__nccl_result result = 0;

    lofi_status st = lofi__nccl_lock(nccl, where);
    if (st != LOFI_OK) return st;
    run->comm = nccl->comm;
    if (lofi__reduces(run->task->collective)) result = make_op(run);
    if (result == 0) result = is_scaled(run) && run->count == 1 ? scale(run) : fn(run);
    return lofi__nccl_unlock(nccl, where, result);
}

/* Frees the operation that holds the factor. After an error it is gone with its communicator. */
static lofi_status free_factor(struct lofi__nccl *nccl, const struct run *run, const char *where)
{
    if (!is_scaled(run)) return LOFI_OK;
    lofi_status st = lofi__nccl_lock(nccl, where);
    if (st != LOFI_OK) return st;
    return lofi__nccl_unlock(nccl, where, run->call->RedOpDestroy(run->op, run->comm));
}

static lofi_status run_on_stream(struct lofi__nccl *nccl, const lofi_task *task,
                                 const struct lofi__turn *turn, const char *where, enqueue_fn fn)
{
    struct run run = {.call = nccl->library,
                      .cuda = nccl->cuda,
                      .nccl = nccl,
                      .task = task,
                      .rank = nccl->members->rank,
                      .count = nccl->members->count,
                      .slot_bytes = lofi__slot_bytes(task),
                      .stream = nccl->stream};

    const int64_t deadline_ns = lofi__after_ms(task->timeout_ms);
    lofi_status st = lofi__driver_check(
        nccl->cuda, nccl->cuda->StreamWaitEvent(nccl->stream, turn->ticket, 0), where);
    if (st == LOFI_OK) st = enqueue(nccl, &run, where, fn);
    if (st == LOFI_OK) st = lofi__nccl_wait(nccl, where, nccl->stream, deadline_ns);
    if (st == LOFI_OK) st = free_factor(nccl, &run, where);
    return st;
}

static lofi_status run(void *state, const lofi_task *task, const struct lofi__turn *turn)
{
    static const enqueue_fn fns[LOFI_COLLECTIVE_COUNT] = {
        [LOFI_ALL_REDUCE] = all_reduce, [LOFI_REDUCE] = reduce,
        [LOFI_BROADCAST] = broadcast,   [LOFI_ALL_GATHER] = all_gather,
        [LOFI_GATHER] = gather,         [LOFI_REDUCE_SCATTER] = reduce_scatter,
        [LOFI_ALL_TO_ALL] = all_to_all, [LOFI_BARRIER] = barrier,
    };
    struct lofi__nccl *nccl = state;
    const char *name = nccl->members->name;
    char where[LOFI__NAME_BYTES + 48];

    if (task->count == 0 && task->collective != LOFI_BARRIER) return LOFI_OK;
    snprintf(where, sizeof where, "%s%s%s", lofi_collective_name(task->collective),
             name[0] != '\0' ? " of " : "", name);
    lofi_status st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    st = run_on_stream(nccl, task, turn, where, fns[task->collective]);
    lofi__nccl_leave(nccl);
    return st;
}

const struct lofi__transport lofi__transport_nccl = {
    .name = "nccl",
    .memory = &lofi__nccl_memory,
    .open = lofi__nccl_open,
    .issue = issue,
    .retire = retire,
    .run = {[LOFI_ALL_REDUCE] = run,
            [LOFI_REDUCE] = run,
            [LOFI_BROADCAST] = run,
            [LOFI_ALL_GATHER] = run,
            [LOFI_GATHER] = run,
            [LOFI_REDUCE_SCATTER] = run,
            [LOFI_ALL_TO_ALL] = run,
            [LOFI_BARRIER] = run},
    .abort = lofi__nccl_abort,
    .close = lofi__nccl_close,
};
