/* SPDX-License-Identifier: MIT */
/*
 * Ranks of a test of the transport nccl: threads of this process, each with a device of the fake
 * driver (tests/c/fake) as its own, which the real ones would take for several processes. What a
 * thread checks is counted under a lock, unlike in test.h.
 *
 *   static void job(struct gpu *gpu) { ... CHECK(lofi_barrier(comm) == LOFI_OK); }
 *   gpus_run(4, job, NULL);
 */
#ifndef LOFI_TESTS_GPUS_H
#define LOFI_TESTS_GPUS_H

#include "fake/fake.h"
#include "fake/nccl.h"
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define GPUS_MOST FAKE_CUDA_DEVICES
#define GPUS_RECORD 1024
#define GPUS_ROUNDS 16

/* Where the ranks of one communicator meet. */
struct gpus_board {
    _Atomic int come[GPUS_ROUNDS];
    char record[GPUS_ROUNDS][GPUS_MOST][GPUS_RECORD];
};

struct gpus_place {
    struct gpus_board *board;
    int rank, count, round;
};

struct gpu {
    int rank, count;
    void *arg;
    struct gpus_board *board; /* of all ranks */
    lofi__cu_stream stream;   /* the "caller's" */
    _Atomic int *flags;       /* 8, for the test's own use but for the last */
};

static pthread_mutex_t gpus_lock = PTHREAD_MUTEX_INITIALIZER;

static inline int gpus_note(int ok, const char *what, const char *file, int line)
{
    pthread_mutex_lock(&gpus_lock);
    test_note(ok, what, file, line);
    pthread_mutex_unlock(&gpus_lock);
    return ok;
}

#define CHECK(condition) gpus_note((condition) ? 1 : 0, #condition, __FILE__, __LINE__)
#define CHECK_ERROR(part) gpus_note(test_has(lofi_last_error(), part), #part, __FILE__, __LINE__)

static inline void gpus_sleep_ms(int ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static inline double gpus_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Until all ranks are here, once: what one of them does then finds no other one in what was before. */
static inline void gpus_meet(struct gpu *gpu)
{
    atomic_fetch_add(&gpu->flags[7], 1);
    while (atomic_load(&gpu->flags[7]) < gpu->count)
        gpus_sleep_ms(1);
}

/* A lofi_allgather_fn; `ctx` is the struct gpus_place. */
static inline lofi_status gpus_allgather(void *ctx, const void *mine, size_t bytes, void *all)
{
    struct gpus_place *place = ctx;
    struct gpus_board *board = place->board;
    const int round = place->round++;
    const double until = gpus_now() + 20;

    if (bytes > GPUS_RECORD || round >= GPUS_ROUNDS) return LOFI_SYSTEM;
    memcpy(board->record[round][place->rank], mine, bytes);
    atomic_fetch_add(&board->come[round], 1);
    while (atomic_load(&board->come[round]) < place->count) {
        if (gpus_now() > until) return LOFI_TIMED_OUT;
        gpus_sleep_ms(1);
    }
    for (int i = 0; i < place->count; i++)
        memcpy((char *)all + (size_t)i * bytes, board->record[round][i], bytes);
    return LOFI_OK;
}

/* The communicator of all ranks, after `set` has changed its options. */
static inline lofi_status gpus_open(struct gpu *gpu, int timeout_ms,
                                    void (*set)(struct gpu *, lofi_comm_options *), lofi_comm **out)
{
    struct gpus_place place = {gpu->board, gpu->rank, gpu->count, 0};
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;

    options.transport = "nccl";
    options.rank = gpu->rank;
    options.rank_count = gpu->count;
    options.timeout_ms = timeout_ms;
    options.name = "test";
    options.stream = gpu->stream;
    if (set != NULL) set(gpu, &options);
    return lofi_comm_create(&options, gpus_allgather, &place, out);
}

static inline lofi_comm *gpus_comm(struct gpu *gpu, int timeout_ms)
{
    lofi_comm *comm = NULL;
    if (!CHECK(gpus_open(gpu, timeout_ms, NULL, &comm) == LOFI_OK)) exit(1);
    return comm;
}

/* A communicator out of `parent`. */
static inline lofi_status gpus_split(struct gpu *gpu, lofi_comm *parent, int color, int rank,
                                     int count, lofi_comm **out)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;

    options.transport = "nccl";
    options.rank = rank;
    options.rank_count = count;
    options.timeout_ms = 5000;
    options.name = "part";
    options.stream = gpu->stream;
    options.parent = parent;
    options.color = color;
    return lofi_comm_create(&options, NULL, NULL, out);
}

/* ---- running --------------------------------------------------------------------------------- */

struct gpus_job {
    struct gpu gpu;
    void (*job)(struct gpu *);
};

static inline void *gpus_thread(void *argument)
{
    struct gpus_job *job = argument;
    lofi__cu_context context = NULL;

    if (!CHECK(fake_cuda.DevicePrimaryCtxRetain(&context, job->gpu.rank) == 0 &&
               fake_cuda.CtxPushCurrent(context) == 0 &&
               fake_cuda.StreamCreate(&job->gpu.stream, LOFI__CU_STREAM_NON_BLOCKING) == 0))
        return NULL;
    job->job(&job->gpu);
    CHECK(fake_cuda_depth() == 1); /* the library gives back what it pushes */
    fake_cuda.StreamDestroy(job->gpu.stream);
    fake_cuda.CtxPopCurrent(&context);
    fake_cuda.DevicePrimaryCtxRelease(job->gpu.rank);
    return NULL;
}

/* Runs `job` in `count` threads, after which nothing is left behind. */
static inline void gpus_run(int count, void (*job)(struct gpu *), void *arg)
{
    const struct fake_cuda_held before = fake_cuda_held();
    struct gpus_board *board = calloc(1, sizeof *board);
    struct gpus_job jobs[GPUS_MOST];
    pthread_t threads[GPUS_MOST];
    _Atomic int flags[8] = {0};

    ASSERT(board != NULL && count <= GPUS_MOST);
    for (int i = 0; i < count; i++) {
        jobs[i] = (struct gpus_job){{i, count, arg, board, NULL, flags}, job};
        if (!CHECK(pthread_create(&threads[i], NULL, gpus_thread, &jobs[i]) == 0)) exit(1);
    }
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    free(board);

    const struct fake_cuda_held after = fake_cuda_held();
    EXPECT(after.allocations == before.allocations && after.streams == before.streams);
    EXPECT(after.events == before.events && after.contexts == before.contexts);
    const struct fake_nccl_held nccl = fake_nccl_held();
    EXPECT(nccl.comms == 0 && nccl.ops == 0 && nccl.misuses == 0);
}

/* ---- device memory --------------------------------------------------------------------------- */

static inline void *gpus_alloc(const struct gpu *gpu, size_t bytes)
{
    void *memory = fake_cuda_alloc(FAKE_CUDA_DEVICE, gpu->rank, bytes > 0 ? bytes : 1);
    if (!CHECK(memory != NULL)) exit(1);
    return memory;
}

#endif /* LOFI_TESTS_GPUS_H */
