/* SPDX-License-Identifier: MIT */
/*
 * What goes wrong with the transport nccl: each failure is a sentence, nobody waits longer than its
 * deadline, and nothing is left behind.
 */
#define _GNU_SOURCE
#include "core/mem.h"
#include "gpus.h"

#include <sys/wait.h>
#include <unistd.h>

#define SHORT_MS 500 /* a deadline that is to pass */
#define LONG_MS 20000

/* ---- out of memory --------------------------------------------------------------------------- */

static _Thread_local int until_failure =
    -1; /* allocations that succeed before one fails; -1: all */

void *lofi__mem_system_create(size_t bytes)
{
    if (until_failure == 0) return NULL;
    if (until_failure > 0) until_failure--;
    return malloc(bytes);
}

void lofi__mem_system_destroy(void *memory)
{
    free(memory);
}

/* One rank, so that nobody waits for one that failed before they met. */
static void out_of_memory(struct gpu *gpu)
{
    lofi_comm *comm = NULL, *part = NULL;
    float *data = gpus_alloc(gpu, 64 * sizeof *data);
    lofi_request *request = NULL;
    lofi_task task = LOFI_TASK_INIT;
    lofi_status st = LOFI_NO_MEMORY;
    int n = 0;

    memset(data, 0, 64 * sizeof *data);
    for (n = 0; st == LOFI_NO_MEMORY; n++) {
        CHECK(comm == NULL);
        memset(gpu->board, 0, sizeof *gpu->board);
        until_failure = n;
        st = gpus_open(gpu, 5000, NULL, &comm);
    }
    CHECK(st == LOFI_OK && n == 5);
    for (st = LOFI_NO_MEMORY, n = 0; st == LOFI_NO_MEMORY; n++) {
        CHECK(part == NULL);
        until_failure = n;
        st = gpus_split(gpu, comm, 0, 0, 1, &part);
    }
    CHECK(st == LOFI_OK && n == 4);
    for (st = LOFI_NO_MEMORY, n = 0; st == LOFI_NO_MEMORY; n++) {
        until_failure = n;
        st = lofi_post(comm, &task, NULL, NULL, &request);
    }
    until_failure = -1;
    CHECK(st == LOFI_OK && n == 2);
    CHECK(lofi_request_wait(request, -1) == LOFI_OK);
    lofi_request_destroy(request);
    until_failure = 0;
    CHECK(lofi_finalize_average(comm, part, LOFI_F32, data, 64, NULL, 0) == LOFI_NO_MEMORY);
    until_failure = -1;
    CHECK(lofi_barrier(comm) == LOFI_OK);
    lofi_comm_destroy(part);
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

static int32_t *make_data(struct gpu *gpu)
{
    int32_t *data = gpus_alloc(gpu, 64 * sizeof *data);
    memset(data, 0, 64 * sizeof *data);
    return data;
}

static lofi_status sum(lofi_comm *comm, int32_t *data)
{
    return lofi_all_reduce(comm, data, data, 64, LOFI_I32, LOFI_SUM);
}

/* ---- making one ------------------------------------------------------------------------------ */

static void on_device_99(struct gpu *gpu, lofi_comm_options *options)
{
    if (gpu->rank == 1) options->device = 99;
}

static void bad_device(struct gpu *gpu)
{
    lofi_comm *comm = NULL;
    CHECK(gpus_open(gpu, LONG_MS, on_device_99, &comm) == LOFI_INVALID);
    CHECK_ERROR("rank 1: device 99: CUDA has 8");
    CHECK(comm == NULL);
}

static void on_device_minus_2(struct gpu *gpu, lofi_comm_options *options)
{
    (void)gpu;
    options->device = -2;
}

/* What fails on one rank before they meet is everyone's error. */
static const struct {
    const char *symbol, *text;
} local[] = {{"ncclGetUniqueId", "rank 0: an id of NCCL: NCCL says on rank 0: unhandled system "
                                 "error: the fake says so"},
             {"cuDevicePrimaryCtxRetain", "the device's context: CUDA says"},
             {"cuCtxPushCurrent_v2", "the device's context: CUDA says"},
             {"cuStreamCreate", "making a stream: CUDA says"},
             {"cuMemAlloc_v2", "memory for barriers: CUDA says"},
             {"cuMemsetD8Async", "memory for barriers: CUDA says"}};

static void local_failure(struct gpu *gpu)
{
    const int *which = gpu->arg;
    lofi_comm *comm = NULL;

    if (gpu->rank == 0) { /* when the threads' own streams and contexts are there */
        while (atomic_load(&gpu->flags[0]) < gpu->count - 1)
            gpus_sleep_ms(1);
        fake_cuda_fail_next(local[*which].symbol, 2);
        atomic_store(&gpu->flags[1], 1);
    } else {
        atomic_fetch_add(&gpu->flags[0], 1);
        while (!atomic_load(&gpu->flags[1]))
            gpus_sleep_ms(1);
    }
    CHECK(gpus_open(gpu, LONG_MS, NULL, &comm) == LOFI_SYSTEM);
    CHECK_ERROR(local[*which].text);
}

/* One rank fails inside NCCL: the other one waits for its deadline, or NCCL tells it. */
static void init_failure(struct gpu *gpu)
{
    lofi_comm *comm = NULL;

    if (gpu->rank == 0) fake_cuda_fail_next("ncclCommInitRankConfig", 2);
    const double began = gpus_now();
    const lofi_status st = gpus_open(gpu, SHORT_MS, NULL, &comm);
    if (st == LOFI_SYSTEM) {
        CHECK_ERROR("making test: NCCL says on rank");
        CHECK_ERROR("unhandled system error: the fake says so");
        CHECK_ERROR("NCCL_DEBUG");
        atomic_fetch_add(&gpu->flags[0], 1);
    } else {
        CHECK(st == LOFI_TIMED_OUT);
        CHECK_ERROR("making test: Timed out waiting: not done in time on rank");
        CHECK(gpus_now() - began < 5);
        atomic_fetch_add(&gpu->flags[1], 1);
    }
    CHECK(comm == NULL);
}

static lofi_status no_allgather(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx, (void)mine;
    memset(all, 0, bytes);
    return LOFI_OK;
}

static lofi_status failing_allgather(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx, (void)mine, (void)bytes, (void)all;
    lofi_set_error("the network is down");
    return LOFI_SYSTEM;
}

static void bad_options(struct gpu *gpu)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL, *self = NULL, *parent = gpus_comm(gpu, LONG_MS);

    options.transport = "self";
    CHECK(lofi_comm_create(&options, NULL, NULL, &self) == LOFI_OK);
    options.parent = self;
    CHECK(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    CHECK_ERROR("only communicators of the transport nccl have a parent");
    options.transport = "nccl";
    CHECK(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    CHECK_ERROR("self for the parent");
    options.parent = parent;
    options.color = -1;
    CHECK(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    CHECK_ERROR("the color is -1");
    options.color = 0;
    options.rank_count = 2;
    CHECK(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    CHECK_ERROR("2 ranks out of a parent of 1");
    options.rank_count = 1;
    options.parent = NULL;
    CHECK(lofi_comm_create(&options, no_allgather, NULL, &comm) == LOFI_CORRUPT);
    CHECK_ERROR("rank 0 sent no hello");
    CHECK(lofi_comm_create(&options, failing_allgather, NULL, &comm) == LOFI_PEER_LOST);
    CHECK_ERROR("the network is down");
    CHECK(gpus_open(gpu, LONG_MS, on_device_minus_2, &comm) == LOFI_INVALID);
    CHECK_ERROR("rank 0: device -2");
    CHECK(comm == NULL);
    lofi_comm_destroy(self);
    lofi_comm_destroy(parent);
}

/* ---- splits that go wrong -------------------------------------------------------------------- */

static void wrong_split(struct gpu *gpu)
{
    lofi_comm *world = gpus_comm(gpu, LONG_MS), *part = NULL;

    /* All in one color, but each counts two ranks. */
    CHECK(gpus_split(gpu, world, 0, gpu->rank % 2, 2, &part) == LOFI_INVALID);
    CHECK_ERROR("out of the parent, the options say rank");
    CHECK_ERROR("of 4");
    CHECK(part == NULL);
    lofi_comm_destroy(world);
}

/* The others of the parent do not come. */
static void lonely_split(struct gpu *gpu)
{
    lofi_comm *world = gpus_comm(gpu, LONG_MS), *part = NULL;
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;

    gpus_meet(gpu);
    if (gpu->rank == 0) {
        options.transport = "nccl";
        options.parent = world;
        options.timeout_ms = SHORT_MS;
        options.name = "column 0";
        CHECK(lofi_comm_create(&options, NULL, NULL, &part) == LOFI_TIMED_OUT);
        CHECK_ERROR("making column 0: Timed out waiting: not done in time on rank 0");
        atomic_store(&gpu->flags[0], 1);
        CHECK(lofi_barrier(world) != LOFI_OK); /* the parent is gone with it */
        CHECK(gpus_split(gpu, world, 0, 0, 1, &part) == LOFI_PEER_LOST);
        CHECK_ERROR("aborted");
    } else {
        while (!atomic_load(&gpu->flags[0]))
            gpus_sleep_ms(1);
        CHECK(lofi_barrier(world) == LOFI_PEER_LOST);
        CHECK_ERROR("remote process exited");
    }
    CHECK(part == NULL);
    lofi_comm_destroy(world);
}

/* NCCL refuses on one rank. */
static void failed_split(struct gpu *gpu)
{
    lofi_comm *world = gpus_comm(gpu, LONG_MS), *part = NULL;

    fake_cuda_fail_next("ncclCommSplit", 5);
    CHECK(gpus_split(gpu, world, 0, 0, 1, &part) == LOFI_SYSTEM);
    CHECK_ERROR("making part: NCCL says on rank 0: invalid usage");
    CHECK(part == NULL);
    lofi_comm_destroy(world);
}

/* ---- tasks that are refused ------------------------------------------------------------------ */

static void refusals(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, LONG_MS);
    int32_t *data = make_data(gpu), host[64] = {0};
    int32_t *pinned = fake_cuda_alloc(FAKE_CUDA_HOST, 0, sizeof host);
    const void *in_list[2] = {data, host};
    lofi_task task = LOFI_TASK_INIT;
    lofi_request *request = NULL;

    CHECK(sum(comm, host) == LOFI_INVALID);
    CHECK_ERROR("all_reduce: input at ");
    CHECK_ERROR("is not in device memory");
    CHECK(sum(comm, pinned) == LOFI_INVALID);
    CHECK_ERROR("is not in device memory");
    CHECK(lofi_all_reduce(comm, data, host, 64, LOFI_I32, LOFI_SUM) == LOFI_INVALID);
    CHECK_ERROR("all_reduce: output at ");
    CHECK(lofi_broadcast(comm, host, 4, 0) == LOFI_INVALID);
    CHECK_ERROR("broadcast: output at ");

    task.collective = LOFI_REDUCE_SCATTER;
    task.dtype = LOFI_I32;
    task.count = 1;
    task.in_list = in_list;
    task.out = data;
    CHECK(lofi_post(comm, &task, NULL, NULL, &request) == LOFI_INVALID);
    CHECK_ERROR("reduce_scatter: input at ");
    task.in_list = NULL;
    task.in = data;
    for (lofi_op op = LOFI_BAND; op <= LOFI_BXOR; op++) {
        task.op = op;
        CHECK(lofi_run(comm, &task) == LOFI_UNSUPPORTED);
        CHECK_ERROR(lofi_op_name(op));
        CHECK_ERROR("of int32: NCCL has no operations on bits");
    }
    task.op = LOFI_SUM;
    task.dtype = LOFI_F8_E4M3;
    CHECK(lofi_run(comm, &task) == LOFI_INVALID);
    CHECK_ERROR("float8_e4m3");
    task.collective = LOFI_ALL_TO_ALL;
    CHECK(lofi_run(comm, &task) == LOFI_UNSUPPORTED);
    CHECK_ERROR("all_to_all in place");

    if (gpu->rank == 0) { /* a failure is for whoever calls next */
        fake_cuda_fail_next("cuEventCreate", 2);
        CHECK(sum(comm, data) == LOFI_SYSTEM);
        CHECK_ERROR("making an event: CUDA says");
        fake_cuda_fail_next("cuEventRecord", 2);
        CHECK(sum(comm, data) == LOFI_SYSTEM);
        CHECK_ERROR("an event on the stream of the options: CUDA says");
        atomic_store(&gpu->flags[0], 1);
    } else {
        while (!atomic_load(&gpu->flags[0]))
            gpus_sleep_ms(1);
    }

    /* All of that broke nothing, and the other ranks need not know. */
    CHECK(request == NULL);
    CHECK(lofi_barrier(comm) == LOFI_OK);
    CHECK(sum(comm, data) == LOFI_OK);
    lofi_comm_destroy(comm);
    fake_cuda_free(pinned);
    fake_cuda_free(data);
}

/* ---- collectives that go wrong --------------------------------------------------------------- */

static void late(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, LONG_MS);
    int32_t *data = make_data(gpu);
    lofi_task task = LOFI_TASK_INIT;

    gpus_meet(gpu);
    if (gpu->rank == 0) {
        const double began = gpus_now();
        task.timeout_ms = SHORT_MS;
        CHECK(lofi_run(comm, &task) == LOFI_TIMED_OUT);
        CHECK_ERROR("barrier of test: Timed out waiting: not done in time on rank 0: another rank "
                    "did not come");
        CHECK(gpus_now() - began > 1e-3 * SHORT_MS && gpus_now() - began < 5);
        CHECK(sum(comm, data) == LOFI_TIMED_OUT);
        CHECK_ERROR("broken since");
        atomic_store(&gpu->flags[0], 1);
    } else {
        while (!atomic_load(&gpu->flags[0]))
            gpus_sleep_ms(1);
        CHECK(sum(comm, data) == LOFI_PEER_LOST);
        CHECK_ERROR("all_reduce of test: NCCL says on rank 1: remote process exited");
    }
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

/* Ranks are in different collectives: NCCL waits, and lofi does not for ever. */
static void mismatch(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, SHORT_MS);
    int32_t *data = make_data(gpu);

    gpus_meet(gpu);
    const lofi_status st = gpu->rank == 0 ? sum(comm, data) : lofi_broadcast(comm, data, 64, 0);
    CHECK(st == LOFI_TIMED_OUT || st == LOFI_PEER_LOST);
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

/* An error of NCCL's while a rank waits. */
static void asynchronous(struct gpu *gpu)
{
    const int *error = gpu->arg;
    lofi_comm *comm = gpus_comm(gpu, LONG_MS);
    int32_t *data = make_data(gpu);

    if (gpu->rank == 0) {
        CHECK(sum(comm, data) ==
              (*error == LOFI__NCCL_REMOTE_ERROR ? LOFI_PEER_LOST : LOFI_SYSTEM));
        CHECK_ERROR("all_reduce of test: NCCL says on rank 0: ");
        CHECK_ERROR(*error == LOFI__NCCL_REMOTE_ERROR ? "remote process exited" : "internal error");
    } else {
        gpus_sleep_ms(50);
        fake_nccl_break(*error);
    }
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

/* A call is refused: within a group, and outside of one. */
static const struct {
    const char *symbol;
    lofi_collective collective;
    lofi_op op;
    int lists;
} calls[] = {{"ncclAllReduce", LOFI_ALL_REDUCE, LOFI_SUM, 0},
             {"ncclRedOpCreatePreMulSum", LOFI_ALL_REDUCE, LOFI_PREMUL_SUM, 0},
             {"ncclRedOpDestroy", LOFI_ALL_REDUCE, LOFI_PREMUL_SUM, 0},
             {"ncclGroupStart", LOFI_ALL_REDUCE, LOFI_PREMUL_SUM, 0},
             {"ncclAllReduce", LOFI_REDUCE, LOFI_PREMUL_SUM, 0},
             {"ncclGroupEnd", LOFI_REDUCE_SCATTER, LOFI_PREMUL_SUM, 0},
             {"ncclReduce", LOFI_REDUCE, LOFI_SUM, 0},
             {"ncclReduce", LOFI_REDUCE_SCATTER, LOFI_SUM, 1},
             {"ncclReduceScatter", LOFI_REDUCE_SCATTER, LOFI_SUM, 0},
             {"ncclBroadcast", LOFI_BROADCAST, LOFI_SUM, 0},
             {"ncclBroadcast", LOFI_ALL_GATHER, LOFI_SUM, 1},
             {"ncclAllGather", LOFI_ALL_GATHER, LOFI_SUM, 0},
             {"ncclGroupStart", LOFI_ALL_TO_ALL, LOFI_SUM, 0},
             {"ncclGroupEnd", LOFI_ALL_TO_ALL, LOFI_SUM, 0},
             {"ncclSend", LOFI_ALL_TO_ALL, LOFI_SUM, 0},
             {"ncclRecv", LOFI_ALL_TO_ALL, LOFI_SUM, 0},
             {"ncclCommGetAsyncError", LOFI_BARRIER, LOFI_SUM, 0},
             {"cuMemcpyAsync", LOFI_ALL_TO_ALL, LOFI_SUM, 0},
             {"cuStreamQuery", LOFI_ALL_REDUCE, LOFI_SUM, 0},
             {"cuStreamWaitEvent", LOFI_ALL_REDUCE, LOFI_SUM, 0}};

static void refused_call(struct gpu *gpu)
{
    const int which = *(const int *)gpu->arg;
    lofi_comm *comm = gpus_comm(gpu, LONG_MS);
    int32_t *data = make_data(gpu);
    const void *in_list[2] = {data, data + 1};
    void *out_list[2] = {data + 8, data + 9};
    lofi_task task = LOFI_TASK_INIT;

    task.collective = calls[which].collective;
    task.op = calls[which].op;
    task.dtype = LOFI_I32;
    task.count = 1;
    task.in = data;
    task.out = data + 8;
    if (calls[which].lists) {
        task.in_list = in_list;
        task.out_list = out_list;
    }
    /* The first rank to come to the call fails, and NCCL tells the other one. */
    gpus_meet(gpu);
    if (gpu->rank == 0) {
        fake_cuda_fail_next(calls[which].symbol, 3);
        const lofi_status st = lofi_run(comm, &task);
        if (!CHECK(st == LOFI_SYSTEM))
            fprintf(stderr, "%s: %s\n", calls[which].symbol, lofi_status_name(st));
        CHECK_ERROR("says");
        CHECK(lofi_run(comm, &task) == LOFI_SYSTEM); /* broken */
        lofi_comm_abort(comm);
        atomic_store(&gpu->flags[0], 1);
    } else {
        while (!atomic_load(&gpu->flags[0]))
            gpus_sleep_ms(1);
        CHECK(lofi_barrier(comm) == LOFI_PEER_LOST);
    }
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

/* ---- abort ----------------------------------------------------------------------------------- */

static void *abort_soon(void *comm)
{
    gpus_sleep_ms(50);
    lofi_comm_abort(comm);
    lofi_comm_abort(comm);
    return NULL;
}

static void aborted(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, LONG_MS);
    lofi_task task = LOFI_TASK_INIT;
    lofi_request *first = NULL, *second = NULL;
    pthread_t thread;

    gpus_meet(gpu);
    if (gpu->rank == 0) {
        const double began = gpus_now();
        CHECK(lofi_post(comm, &task, NULL, NULL, &first) == LOFI_OK);
        CHECK(lofi_post(comm, &task, NULL, NULL, &second) == LOFI_OK);
        CHECK(pthread_create(&thread, NULL, abort_soon, comm) == 0);
        CHECK(lofi_request_wait(first, -1) == LOFI_PEER_LOST);
        CHECK_ERROR("barrier of test: rank 0 has aborted the communicator");
        CHECK(lofi_request_wait(second, -1) == LOFI_PEER_LOST);
        CHECK(gpus_now() - began < 5);
        pthread_join(thread, NULL);
        CHECK(lofi_barrier(comm) == LOFI_PEER_LOST);
        lofi_request_destroy(second);
        lofi_request_destroy(first);
        atomic_store(&gpu->flags[0], 1);
    } else {
        while (!atomic_load(&gpu->flags[0]))
            gpus_sleep_ms(1);
        CHECK(lofi_barrier(comm) == LOFI_PEER_LOST);
    }
    lofi_comm_destroy(comm);
}

static int works(lofi_comm *comm, int32_t *data)
{
    *data = 1;
    return sum(comm, data) == LOFI_OK && *data == lofi_comm_rank_count(comm);
}

/* Children and their parent share nothing that an abort breaks. */
static void aborted_alone(struct gpu *gpu)
{
    lofi_comm *world = gpus_comm(gpu, LONG_MS), *first = NULL, *second = NULL;
    int32_t *data = make_data(gpu);

    CHECK(gpus_split(gpu, world, 0, gpu->rank, gpu->count, &first) == LOFI_OK);
    CHECK(gpus_split(gpu, world, 0, gpu->rank, gpu->count, &second) == LOFI_OK);
    lofi_comm_abort(first);
    CHECK(sum(first, data) == LOFI_PEER_LOST);
    CHECK(works(world, data) && works(second, data));
    lofi_comm_abort(world);
    CHECK(works(second, data));
    lofi_comm_destroy(second);
    lofi_comm_destroy(first);
    lofi_comm_destroy(world);
    fake_cuda_free(data);
}

/* Many times, at every moment of a collective. */
static void abort_race(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, LONG_MS);
    int32_t *data = make_data(gpu);
    pthread_t thread;
    lofi_status st = LOFI_OK;

    gpus_meet(gpu);
    CHECK(pthread_create(&thread, NULL, abort_soon, comm) == 0);
    while (st == LOFI_OK)
        st = sum(comm, data);
    CHECK(st == LOFI_PEER_LOST);
    pthread_join(thread, NULL);
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

/* ---- the end --------------------------------------------------------------------------------- */

/* NCCL does not come to an end: it is aborted. */
static void stuck_end(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, SHORT_MS);
    const int aborts = fake_cuda_calls("ncclCommAbort");

    CHECK(lofi_barrier(comm) == LOFI_OK);
    fake_nccl_hold_finalize(1);
    const double began = gpus_now();
    lofi_comm_destroy(comm);
    fake_nccl_hold_finalize(0);
    CHECK(gpus_now() - began < 5);
    CHECK(fake_cuda_calls("ncclCommAbort") == aborts + 1);
}

/* What is posted and has not run fails, and gives back what it holds. */
static void destroyed_with_posts(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, SHORT_MS);
    lofi_task task = LOFI_TASK_INIT;
    lofi_request *requests[3];

    gpus_meet(gpu);
    if (gpu->rank == 0)
        for (int i = 0; i < 3; i++)
            CHECK(lofi_post(comm, &task, NULL, NULL, &requests[i]) == LOFI_OK);
    lofi_comm_destroy(comm);
    if (gpu->rank == 0)
        for (int i = 0; i < 3; i++) {
            CHECK(lofi_request_test(requests[i]) != LOFI_OK);
            lofi_request_destroy(requests[i]);
        }
}

/* A child may destroy its parent's, and leaves CUDA and NCCL alone. */
static void forked(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, LONG_MS);
    int status = 0;

    CHECK(lofi_barrier(comm) == LOFI_OK);
    fflush(NULL);
    const int ended = fake_cuda_calls("ncclCommFinalize") + fake_cuda_calls("ncclCommAbort");
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        int fine = lofi_barrier(comm) == LOFI_STATE;
        fine &= lofi_finalize_average(comm, comm, LOFI_F32, &status, 1, NULL, 0) == LOFI_STATE;
        lofi_comm_destroy(comm);
        fine &= fake_cuda_calls("ncclCommFinalize") + fake_cuda_calls("ncclCommAbort") == ended;
        _exit(fine ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(lofi_barrier(comm) == LOFI_OK);
    lofi_comm_destroy(comm);
}

int main(void)
{
    int errors[] = {LOFI__NCCL_REMOTE_ERROR, 3};

    gpus_run(3, bad_device, NULL);
    for (int i = 0; i < (int)(sizeof local / sizeof local[0]); i++)
        gpus_run(2, local_failure, &i);
    gpus_run(2, init_failure, NULL);
    gpus_run(1, bad_options, NULL);
    gpus_run(4, wrong_split, NULL);
    gpus_run(2, lonely_split, NULL);
    gpus_run(1, failed_split, NULL);
    gpus_run(2, refusals, NULL);
    gpus_run(2, late, NULL);
    EXPECT(fake_nccl_held().mismatches == 0);
    gpus_run(2, mismatch, NULL);
    EXPECT(fake_nccl_held().mismatches == 1);
    gpus_run(2, asynchronous, &errors[0]);
    gpus_run(2, asynchronous, &errors[1]);
    for (int i = 0; i < (int)(sizeof calls / sizeof calls[0]); i++)
        gpus_run(calls[i].op == LOFI_PREMUL_SUM ? 1 : 2, refused_call, &i);
    gpus_run(2, aborted, NULL);
    gpus_run(2, aborted_alone, NULL);
    for (int i = 0; i < 5; i++)
        gpus_run(2, abort_race, NULL);
    gpus_run(1, stuck_end, NULL);
    gpus_run(2, destroyed_with_posts, NULL);
    gpus_run(1, forked, NULL);
    gpus_run(1, out_of_memory, NULL);
    return test_end();
}
