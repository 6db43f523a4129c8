/* SPDX-License-Identifier: MIT */
/*
 * The fake driver: streams and events. Both are kept for good, and only marked when they are
 * destroyed: events and waits may point at them, and a use afterwards can be refused.
 */
#define _GNU_SOURCE
#include "fake/inside.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

struct operation {
    struct operation *next;
    fake_cuda_fn fn;
    void (*done)(void *);
    void *ctx;
};

struct CUstream_st {
    lofi__cu_stream next; /* of all */
    lofi__cu_context context;
    struct operation *first, **last;
    uint64_t put, run; /* operations */
    lofi__cu_result error;
    int is_destroyed;
};

struct CUevent_st {
    lofi__cu_event next;
    lofi__cu_context context;
    lofi__cu_stream stream; /* NULL: never recorded, which counts as done */
    uint64_t position;      /* that the stream has to reach */
    int is_destroyed;
};

static lofi__cu_stream streams;
static lofi__cu_event events;

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (memory == NULL) abort();
    return memory;
}

/* ---- running ---- */

/* Runs the oldest operation, if there is one. */
static lofi__cu_result step(lofi__cu_stream stream)
{
    struct operation *op = stream->first;

    if (stream->error != 0 || op == NULL) return stream->error;
    lofi__cu_result result = op->fn(op->ctx);
    if (result == LOFI__CU_NOT_READY) return result;
    stream->error = result;
    stream->run++;
    stream->first = op->next;
    if (stream->first == NULL) stream->last = &stream->first;
    if (op->done != NULL) op->done(op->ctx);
    free(op);
    return result;
}

static lofi__cu_result run_until(lofi__cu_stream stream, uint64_t position)
{
    lofi__cu_result result = stream->error;
    while (result == 0 && stream->run < position)
        result = step(stream);
    return result;
}

static lofi__cu_result query(lofi__cu_stream stream)
{
    if (step(stream) == LOFI__CU_NOT_READY)
        for (lofi__cu_stream other = streams; other != NULL; other = other->next)
            if (other != stream) step(other);
    if (stream->error != 0) return stream->error;
    return stream->first != NULL ? LOFI__CU_NOT_READY : 0;
}

/* ---- streams ---- */

static lofi__cu_stream create(lofi__cu_context context)
{
    lofi__cu_stream stream = allocate(sizeof *stream);
    stream->context = context;
    stream->last = &stream->first;
    stream->next = streams;
    streams = stream;
    return stream;
}

/* The stream that a handle means in the current context. */
static lofi__cu_result find(lofi__cu_stream handle, lofi__cu_stream *stream)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = fake__current(&context);
    if (error != 0) return error;
    if (handle == NULL || handle == FAKE__DEFAULT_STREAM) {
        if (context->default_stream == NULL) context->default_stream = create(context);
        handle = context->default_stream;
    }
    *stream = handle;
    return handle->is_destroyed ? FAKE_CUDA_INVALID_HANDLE : 0;
}

/* As find; the stream has to be of the current context. */
static lofi__cu_result find_own(lofi__cu_stream handle, lofi__cu_stream *stream)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = find(handle, stream);
    if (error == 0) error = fake__current(&context);
    if (error == 0 && (*stream)->context != context) error = FAKE_CUDA_INVALID_HANDLE;
    return error;
}

static void put(lofi__cu_stream stream, fake_cuda_fn fn, void (*done)(void *), void *ctx)
{
    struct operation *op = allocate(sizeof *op);
    *op = (struct operation){NULL, fn, done, ctx};
    *stream->last = op;
    stream->last = &op->next;
    stream->put++;
}

lofi__cu_result fake__enqueue(lofi__cu_stream handle, fake_cuda_fn fn, void (*done)(void *),
                              void *ctx)
{
    lofi__cu_stream stream = NULL;
    lofi__cu_result error = find_own(handle, &stream);
    if (error == 0) error = stream->error;
    if (error == 0) put(stream, fn, done, ctx);
    return error;
}

lofi__cu_result cuStreamCreate(lofi__cu_stream *stream, unsigned flags)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = fake__enter("cuStreamCreate");
    if (error == 0) error = fake__current(&context);
    if (error == 0) error = fake__unsafe();
    if (error == 0 && flags > LOFI__CU_STREAM_NON_BLOCKING) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0) *stream = create(context);
    return fake__leave(error);
}

/* What is on it still runs, as on a GPU: when another stream waits for it, or for a rank. */
lofi__cu_result cuStreamDestroy_v2(lofi__cu_stream stream)
{
    lofi__cu_result error = fake__enter("cuStreamDestroy_v2");
    if (error == 0 && (stream == NULL || stream->is_destroyed)) error = FAKE_CUDA_INVALID_HANDLE;
    if (error == 0) {
        stream->is_destroyed = 1;
        run_until(stream, stream->put);
    }
    return fake__leave(error);
}

lofi__cu_result cuStreamQuery(lofi__cu_stream handle)
{
    lofi__cu_stream stream = NULL;
    lofi__cu_result error = fake__enter("cuStreamQuery");
    if (error == 0) error = find(handle, &stream);
    if (error == 0) error = fake__unsafe();
    if (error == 0) error = query(stream);
    return fake__leave(error);
}

lofi__cu_result fake_cuda_finish(lofi__cu_stream handle)
{
    for (;;) {
        lofi__cu_stream stream = NULL;
        fake__lock();
        lofi__cu_result result = find(handle, &stream);
        if (result == 0) result = query(stream);
        fake__unlock();
        if (result != LOFI__CU_NOT_READY) return result;
        sched_yield();
    }
}

lofi__cu_result fake_cuda_enqueue(lofi__cu_stream stream, fake_cuda_fn fn, void (*done)(void *),
                                  void *ctx)
{
    fake__lock();
    return fake__leave(fake__enqueue(stream, fn, done, ctx));
}

int fake_cuda_pending(lofi__cu_stream handle)
{
    lofi__cu_stream stream = NULL;
    fake__lock();
    const int pending = find(handle, &stream) == 0 ? (int)(stream->put - stream->run) : -1;
    fake__unlock();
    return pending;
}

void fake_cuda_break(lofi__cu_stream handle, lofi__cu_result error)
{
    lofi__cu_stream stream = NULL;
    fake__lock();
    if (find(handle, &stream) != 0) abort();
    stream->error = error;
    fake__unlock();
}

/* ---- events ---- */

lofi__cu_result cuEventCreate(lofi__cu_event *event, unsigned flags)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = fake__enter("cuEventCreate");
    if (error == 0) error = fake__current(&context);
    if (error == 0 && flags > 3) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0) {
        lofi__cu_event fresh = allocate(sizeof *fresh);
        fresh->context = context;
        fresh->next = events;
        events = *event = fresh;
    }
    return fake__leave(error);
}

lofi__cu_result cuEventDestroy_v2(lofi__cu_event event)
{
    lofi__cu_result error = fake__enter("cuEventDestroy_v2");
    if (error == 0 && (event == NULL || event->is_destroyed)) error = FAKE_CUDA_INVALID_HANDLE;
    if (error == 0) event->is_destroyed = 1;
    return fake__leave(error);
}

lofi__cu_result cuEventRecord(lofi__cu_event event, lofi__cu_stream handle)
{
    lofi__cu_stream stream = NULL;
    lofi__cu_result error = fake__enter("cuEventRecord");
    if (error == 0) error = find_own(handle, &stream);
    if (error == 0 && (event == NULL || event->is_destroyed || event->context != stream->context))
        error = FAKE_CUDA_INVALID_HANDLE;
    if (error == 0) error = stream->error;
    if (error == 0) {
        event->stream = stream;
        event->position = stream->put;
    }
    return fake__leave(error);
}

/* A copy of the event: what is recorded later does not count. */
static lofi__cu_result run_wait(void *ctx)
{
    const struct CUevent_st *event = ctx;
    return run_until(event->stream, event->position);
}

lofi__cu_result cuStreamWaitEvent(lofi__cu_stream handle, lofi__cu_event event, unsigned flags)
{
    lofi__cu_stream stream = NULL;
    lofi__cu_result error = fake__enter("cuStreamWaitEvent");
    if (error == 0) error = find(handle, &stream);
    if (error == 0 && flags != 0) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0 && (event == NULL || event->is_destroyed)) error = FAKE_CUDA_INVALID_HANDLE;
    if (error == 0) error = stream->error;
    if (error == 0 && event->stream != NULL) {
        struct CUevent_st *copy = allocate(sizeof *copy);
        *copy = *event;
        put(stream, run_wait, free, copy);
    }
    return fake__leave(error);
}

/* ---- operations of the driver ---- */

struct copy {
    lofi__cu_address to, from;
    size_t bytes;
    unsigned char value;        /* of a memset, whose `from` is 0 */
    int to_device, from_device; /* when it was put on the stream */
};

static int is_device(lofi__cu_address memory, size_t bytes)
{
    return fake_cuda_is_device((const void *)(uintptr_t)memory, bytes);
}

static lofi__cu_result run_copy(void *ctx)
{
    const struct copy *copy = ctx;
    if (copy->to_device && !is_device(copy->to, copy->bytes)) return FAKE_CUDA_ILLEGAL_ADDRESS;
    if (copy->from_device && !is_device(copy->from, copy->bytes)) return FAKE_CUDA_ILLEGAL_ADDRESS;
    void *to = (void *)(uintptr_t)copy->to;
    if (copy->from == 0)
        memset(to, copy->value, copy->bytes);
    else
        memmove(to, (const void *)(uintptr_t)copy->from, copy->bytes);
    return 0;
}

static lofi__cu_result put_copy(const struct copy *wanted, lofi__cu_stream stream)
{
    struct copy *copy = allocate(sizeof *copy);
    *copy = *wanted;
    lofi__cu_result error = fake__enqueue(stream, run_copy, free, copy);
    if (error != 0) free(copy);
    return error;
}

lofi__cu_result cuMemcpyAsync(lofi__cu_address to, lofi__cu_address from, size_t bytes,
                              lofi__cu_stream stream)
{
    const struct copy copy = {to, from, bytes, 0, is_device(to, 1), is_device(from, 1)};
    lofi__cu_result error = fake__enter("cuMemcpyAsync");
    if (error == 0 && (to == 0 || from == 0)) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0) error = fake__check_copy(to, bytes);
    if (error == 0) error = fake__check_copy(from, bytes);
    if (error == 0 && bytes > 0) error = put_copy(&copy, stream);
    return fake__leave(error);
}

lofi__cu_result cuMemsetD8Async(lofi__cu_address to, unsigned char value, size_t bytes,
                                lofi__cu_stream stream)
{
    const struct copy copy = {to, 0, bytes, value, 1, 0};
    lofi__cu_result error = fake__enter("cuMemsetD8Async");
    if (error == 0 && bytes > 0 && !is_device(to, bytes)) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0 && bytes > 0) error = put_copy(&copy, stream);
    return fake__leave(error);
}

void fake__count_streams(struct fake_cuda_held *held)
{
    for (lofi__cu_stream s = streams; s != NULL; s = s->next)
        held->streams += !s->is_destroyed && s->context->default_stream != s;
    for (lofi__cu_event e = events; e != NULL; e = e->next)
        held->events += !e->is_destroyed;
}
