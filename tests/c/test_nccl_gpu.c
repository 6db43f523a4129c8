/* SPDX-License-Identifier: MIT */
/*
 * The transport nccl on the NCCL and the GPU that are there; skipped without. Ranks are processes
 * that share the first GPU: each has an NCCL_HOSTID of its own, so NCCL takes them for machines and
 * goes through loopback. Two nodes of two ranks, split off one communicator.
 */
#define _GNU_SOURCE
#include "cuda/driver.h"
#include "ranks.h"

#define RANKS 4
#define LOCAL_SIZE 2
#define COUNT 100003
#define TIMEOUT_MS 60000

struct gpu {
    const struct lofi__driver *cu;
    lofi__cu_stream stream; /* the "caller's" */
};

static lofi_status start(const struct rank *rank, struct gpu *gpu)
{
    lofi__cu_context context = NULL;
    lofi__cu_device device = 0;
    char name[16];

    snprintf(name, sizeof name, "host%d", rank->rank);
    setenv("NCCL_HOSTID", name, 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 1);
    lofi_status st = lofi__driver_get(&gpu->cu);
    if (st != LOFI_OK) return st;
    ASSERT(gpu->cu->DeviceGet(&device, 0) == 0);
    ASSERT(gpu->cu->DevicePrimaryCtxRetain(&context, device) == 0);
    ASSERT(gpu->cu->CtxPushCurrent(context) == 0);
    ASSERT(gpu->cu->StreamCreate(&gpu->stream, LOFI__CU_STREAM_NON_BLOCKING) == 0);
    return LOFI_OK;
}

static lofi_status open_comm(const struct gpu *gpu, struct rank *rank, int timeout_ms,
                             lofi_comm **out)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;

    options.transport = "nccl";
    options.rank = rank->rank;
    options.rank_count = rank->count;
    options.timeout_ms = timeout_ms;
    options.name = "world";
    options.stream = gpu->stream;
    return lofi_comm_create(&options, ranks_allgather, rank, out);
}

static lofi_comm *split(const struct gpu *gpu, lofi_comm *parent, int color, int rank, int count)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;

    options.transport = "nccl";
    options.rank = rank;
    options.rank_count = count;
    options.timeout_ms = TIMEOUT_MS;
    options.name = "part";
    options.stream = gpu->stream;
    options.parent = parent;
    options.color = color;
    ASSERT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_OK);
    return comm;
}

/* 0 where there is a GPU with an NCCL, 77 where not; in a process of its own, since forks of one that
 * has started CUDA can't use it. */
static int probe(struct rank *rank)
{
    struct gpu gpu;
    lofi_comm *comm = NULL;

    if (start(rank, &gpu) != LOFI_OK) return 77;
    const lofi_status st = open_comm(&gpu, rank, TIMEOUT_MS, &comm);
    if (st == LOFI_UNSUPPORTED) return 77;
    EXPECT(st == LOFI_OK);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* ---- device memory --------------------------------------------------------------------------- */

static float *device(const struct gpu *gpu, size_t bytes)
{
    lofi__cu_address memory = 0;
    ASSERT(gpu->cu->MemAlloc(&memory, bytes) == 0);
    float *data;
    memcpy(&data, &memory, sizeof data);
    return data;
}

/* Work on the caller's stream that nobody waits for; pageable memory is read before it returns. */
static void put(const struct gpu *gpu, void *to, const void *from, size_t bytes)
{
    ASSERT(gpu->cu->MemcpyAsync((uintptr_t)to, (uintptr_t)from, bytes, gpu->stream) == 0);
}

static void take(const struct gpu *gpu, void *to, const void *from, size_t bytes)
{
    put(gpu, to, from, bytes);
    while (gpu->cu->StreamQuery(gpu->stream) == LOFI__CU_NOT_READY)
        ranks_sleep(50e-6);
}

/* ---- collectives ----------------------------------------------------------------------------- */

static float number(int rank, size_t slot)
{
    return (float)(100 * rank) + (float)slot;
}

static void run(const struct gpu *gpu, lofi_comm *comm, lofi_collective collective, lofi_op op,
                const float *in, size_t in_slots, float *out, size_t out_slots)
{
    float *from = device(gpu, in_slots * sizeof *in), *to = device(gpu, out_slots * sizeof *out);
    lofi_task task = LOFI_TASK_INIT;

    put(gpu, from, in, in_slots * sizeof *in);
    put(gpu, to, in, out_slots <= in_slots ? out_slots * sizeof *in : sizeof *in);
    task.collective = collective;
    task.dtype = LOFI_F32;
    task.op = op;
    task.factor = 0.5;
    task.root = 1;
    task.count = 1;
    task.in = from;
    task.out = to;
    if (!EXPECT(lofi_run(comm, &task) == LOFI_OK))
        fprintf(stderr, "%s: %s\n", lofi_collective_name(collective), lofi_last_error());
    take(gpu, out, to, out_slots * sizeof *out);
    gpu->cu->MemFree((uintptr_t)from);
    gpu->cu->MemFree((uintptr_t)to);
}

static void check_collectives(const struct gpu *gpu, lofi_comm *comm)
{
    const int rank = lofi_comm_rank(comm), count = lofi_comm_rank_count(comm);
    float in[RANKS], out[RANKS], sum = 0;

    for (int i = 0; i < count; i++) {
        in[i] = number(rank, (size_t)i);
        sum += number(i, 0);
    }
    run(gpu, comm, LOFI_ALL_REDUCE, LOFI_SUM, in, 1, out, 1);
    EXPECT(out[0] == sum);
    run(gpu, comm, LOFI_ALL_REDUCE, LOFI_PREMUL_SUM, in, 1, out, 1);
    EXPECT(out[0] == 0.5f * sum);
    run(gpu, comm, LOFI_ALL_REDUCE, LOFI_AVG, in, 1, out, 1);
    EXPECT(out[0] == sum / (float)count);
    run(gpu, comm, LOFI_ALL_REDUCE, LOFI_MAX, in, 1, out, 1);
    EXPECT(out[0] == number(count - 1, 0));
    run(gpu, comm, LOFI_REDUCE, LOFI_SUM, in, 1, out, 1);
    EXPECT(rank != 1 || out[0] == sum);
    run(gpu, comm, LOFI_BROADCAST, LOFI_SUM, in, 1, out, 1);
    EXPECT(out[0] == number(1, 0));
    run(gpu, comm, LOFI_ALL_GATHER, LOFI_SUM, in, 1, out, (size_t)count);
    for (int i = 0; i < count; i++)
        EXPECT(out[i] == number(i, 0));
    run(gpu, comm, LOFI_GATHER, LOFI_SUM, in, 1, out, (size_t)count);
    for (int i = 0; i < count; i++)
        EXPECT(rank != 1 || out[i] == number(i, 0));
    run(gpu, comm, LOFI_REDUCE_SCATTER, LOFI_SUM, in, (size_t)count, out, 1);
    EXPECT(out[0] == sum + (float)(count * rank));
    run(gpu, comm, LOFI_ALL_TO_ALL, LOFI_SUM, in, (size_t)count, out, (size_t)count);
    for (int i = 0; i < count; i++)
        EXPECT(out[i] == number(i, (size_t)rank));
    EXPECT(lofi_barrier(comm) == LOFI_OK);
}

static void check_average(const struct gpu *gpu, const struct rank *rank, lofi_comm *node,
                          lofi_comm *column)
{
    static const double weights[] = {0.3, 1.7};
    float *of_node[RANKS / LOCAL_SIZE], *want = malloc(COUNT * sizeof *want);
    float *data = device(gpu, COUNT * sizeof *data), *got = malloc(COUNT * sizeof *got);
    const void *in[RANKS / LOCAL_SIZE];

    ASSERT(want != NULL && got != NULL);
    for (int k = 0; k < RANKS / LOCAL_SIZE; k++) {
        uint64_t seed = 7 + (uint64_t)k;
        of_node[k] = malloc(COUNT * sizeof *of_node[k]);
        ASSERT(of_node[k] != NULL);
        for (int i = 0; i < COUNT; i++)
            of_node[k][i] = (float)(int32_t)test_random(&seed) * 0x1p-20f;
        in[k] = of_node[k];
    }
    ASSERT(lofi_mean(LOFI_F32, want, in, weights, RANKS / LOCAL_SIZE, COUNT) == LOFI_OK);
    put(gpu, data, of_node[rank->rank / LOCAL_SIZE], COUNT * sizeof *data);
    if (!EXPECT(lofi_finalize_average(node, column, LOFI_F32, data, COUNT, weights, 1 << 18) ==
                LOFI_OK))
        fprintf(stderr, "average: %s\n", lofi_last_error());
    take(gpu, got, data, COUNT * sizeof *data);
    EXPECT(memcmp(got, want, COUNT * sizeof *got) == 0);
    for (int k = 0; k < RANKS / LOCAL_SIZE; k++)
        free(of_node[k]);
    free(want);
    free(got);
    gpu->cu->MemFree((uintptr_t)data);
}

static int works(struct rank *rank)
{
    const int k = rank->rank / LOCAL_SIZE, place = rank->rank % LOCAL_SIZE;
    lofi_comm *world = NULL;
    struct gpu gpu;

    ASSERT(start(rank, &gpu) == LOFI_OK);
    if (!EXPECT(open_comm(&gpu, rank, TIMEOUT_MS, &world) == LOFI_OK)) return 1;
    lofi_comm *node = split(&gpu, world, k, place, LOCAL_SIZE);
    lofi_comm *column = split(&gpu, world, place, k, RANKS / LOCAL_SIZE);
    check_collectives(&gpu, world);
    check_collectives(&gpu, node);
    check_average(&gpu, rank, node, column);
    lofi_comm_destroy(column);
    lofi_comm_destroy(node);
    lofi_comm_destroy(world);
    return test_failures != 0;
}

/* The others learn of it, at the latest at their deadline. */
static int loses_a_rank(struct rank *rank)
{
    lofi_comm *comm = NULL;
    struct gpu gpu;

    ASSERT(start(rank, &gpu) == LOFI_OK);
    if (!EXPECT(open_comm(&gpu, rank, 10000, &comm) == LOFI_OK)) return 1;
    EXPECT(lofi_barrier(comm) == LOFI_OK);
    if (rank->rank == 1) _exit(0);
    const double begin = ranks_now();
    const lofi_status st = lofi_barrier(comm);
    EXPECT(st == LOFI_TIMED_OUT || st == LOFI_PEER_LOST || st == LOFI_SYSTEM);
    EXPECT(ranks_now() - begin < 30);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

int main(void)
{
    int code = 0;

    ranks_run(1, 120, probe, NULL, &code);
    if (code == 77) {
        puts("skipped: no GPU, or no NCCL");
        return 77;
    }
    EXPECT(code == 0);
    EXPECT(ranks_all_passed(RANKS, 180, works, NULL));
    EXPECT(ranks_all_passed(2, 120, loses_a_rank, NULL));
    return test_end();
}
