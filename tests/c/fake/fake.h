/* SPDX-License-Identifier: MIT */
/*
 * A CUDA driver without a GPU, for tests: a libcuda.so.1 of its own. A test that links it gets it
 * where the library looks for the real one; others set LD_LIBRARY_PATH.
 *
 *   Memory    "Device memory" is the host's, with a list of what was allocated: other pointers are
 *             refused where CUDA refuses them. It is filled with garbage. An operation that runs
 *             after its memory was freed fails with FAKE_CUDA_ILLEGAL_ADDRESS, as does its stream
 *             from then on. (The real cuMemFree waits for the device; code should not count on it.)
 *   Contexts  One primary context for each of FAKE_CUDA_DEVICES devices, nothing without a current
 *             one. Threads are ranks: each has its own stack of contexts.
 *   Streams   Run later. Whatever is put on a stream waits there until someone asks for the stream:
 *             each query runs one operation, the oldest. A stream that waits for an event runs the
 *             event's stream, up to the record, when it gets to the wait itself, and not before. So
 *             who forgets to order two streams reads garbage, every time. Nothing orders the
 *             default stream, which is one for each device and never the thread's own.
 *             If the oldest operation says that it is not ready (it waits for another rank), all
 *             other streams run one operation, since a GPU needs nobody to ask.
 *   Graphs    A capture is pretended by fake_cuda_capture: what CUDA forbids meanwhile fails, and
 *             operations are run as ever.
 *
 * All of it is under one lock, so that an operation may look at what it likes, and must not block.
 */
#ifndef LOFI_TESTS_FAKE_H
#define LOFI_TESTS_FAKE_H

#include "cuda/driver.h"

#define FAKE_CUDA_DEVICES 8

#define FAKE_CUDA_INVALID_VALUE 1
#define FAKE_CUDA_OUT_OF_MEMORY 2
#define FAKE_CUDA_NO_DEVICE 100
#define FAKE_CUDA_INVALID_IMAGE 200
#define FAKE_CUDA_INVALID_CONTEXT 201
#define FAKE_CUDA_NO_BINARY 209
#define FAKE_CUDA_INVALID_HANDLE 400
#define FAKE_CUDA_NOT_FOUND 500
#define FAKE_CUDA_ILLEGAL_ADDRESS 700
#define FAKE_CUDA_CONTEXT_IS_DESTROYED 709
#define FAKE_CUDA_CAPTURE_UNSUPPORTED 900

/* What the library finds by name, without looking for it. */
extern const struct lofi__driver fake_cuda;

/* The next call of `symbol` ("cuMemAlloc_v2") on any thread returns `error` and does nothing. One
 * for each symbol at a time; an `error` of 0 takes it back. */
void fake_cuda_fail_next(const char *symbol, lofi__cu_result error);
/* How often `symbol` was called, in this process. */
int fake_cuda_calls(const char *symbol);

/* ---- memory ---- */

typedef enum fake_cuda_kind {
    FAKE_CUDA_DEVICE,
    FAKE_CUDA_POOL, /* device memory of no context: a memory pool's, or mapped piece by piece */
    FAKE_CUDA_HOST  /* pinned */
} fake_cuda_kind;

/* As cuMemAlloc on `device`, without a context. NULL if there is no memory. */
void *fake_cuda_alloc(fake_cuda_kind kind, int device, size_t bytes);
void fake_cuda_free(void *memory);
/* Begins to count anew; the most bytes that were allocated on the device at once since. */
void fake_cuda_count_bytes(int device);
size_t fake_cuda_most_bytes(int device);

/* ---- contexts and objects ---- */

lofi__cu_context fake_cuda_context(int device); /* whether retained or not */
int fake_cuda_retained(int device);             /* how often its primary context is retained */
int fake_cuda_depth(void);                      /* contexts on the calling thread's stack */

/* What is not yet given back in this process. */
struct fake_cuda_held {
    int allocations, streams, events, modules, contexts;
};
struct fake_cuda_held fake_cuda_held(void);

/* ---- streams ---- */

/* 0: done. LOFI__CU_NOT_READY: ask again later. Anything else fails the stream for good. Called
 * under the lock, by whatever thread; it may call all functions of the driver and this header. */
typedef lofi__cu_result (*fake_cuda_fn)(void *ctx);

/* Puts an operation on a stream, as a library on top of CUDA does: it needs the stream's context
 * current. `done`, which may be NULL, is called with `ctx` when the operation is dropped. */
lofi__cu_result fake_cuda_enqueue(lofi__cu_stream stream, fake_cuda_fn fn, void (*done)(void *),
                                  void *ctx);
/* Operations on the stream that have not run. */
int fake_cuda_pending(lofi__cu_stream stream);
/* cuStreamSynchronize: runs all of them. NULL is the current context's default stream. */
lofi__cu_result fake_cuda_finish(lofi__cu_stream stream);
/* The stream fails with `error` from now on. */
void fake_cuda_break(lofi__cu_stream stream, lofi__cu_result error);
/* 1: as while a stream of this thread is captured into a graph. */
void fake_cuda_capture(int is_on);

/* For operations: 1 if all of the bytes are in one piece of memory that is allocated. */
int fake_cuda_is_device(const void *memory, size_t bytes);

/* ---- kernels ---- */

/* The last cuLaunchKernel of the calling thread; parameters are not copied. */
struct fake_cuda_launch {
    char name[64];
    unsigned grid, block, shared_bytes;
    lofi__cu_stream stream;
};
struct fake_cuda_launch fake_cuda_last_launch(void);

#endif /* LOFI_TESTS_FAKE_H */
