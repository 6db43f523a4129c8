/* SPDX-License-Identifier: MIT */
/*
 * The transport nccl on a fake NCCL and a fake driver: what every rank gets, against sums in double
 * of numbers that are exact in every dtype. Inputs are written by work on the caller's stream that
 * nobody waits for, so that a collective which begins too early reads garbage.
 */
#define _GNU_SOURCE
#include "core/collective.h"
#include "gpus.h"
#include "kernels/halffloat.h"

#include <math.h>

#define MOST_COUNT 1000
#define FACTOR 3

/* ---- numbers --------------------------------------------------------------------------------- */

static int is_unsigned(lofi_dtype dtype)
{
    return dtype == LOFI_U8 || dtype == LOFI_BYTES;
}

/* What `rank` gives in slot `slot`. Products of up to 8 of them are exact in bfloat16. */
static double number(const lofi_task *task, int rank, int slot, size_t i)
{
    uint64_t seed = (uint64_t)(rank * 131 + slot) * 1000003 + i;
    const int bits = (int)(test_random(&seed) % 9);

    if (lofi__reduces(task->collective) && task->op == LOFI_PRODUCT)
        return bits < 6 ? 1 : bits < 8 || is_unsigned(task->dtype) ? 2 : -1;
    return is_unsigned(task->dtype) ? bits : bits - 4;
}

static void encode(lofi_dtype dtype, double value, char *to)
{
    const float narrow = (float)value;
    const int64_t whole = (int64_t)value;
    const uint16_t half = dtype == LOFI_F16 ? lofi__f64_to_f16(value) : lofi__f64_to_bf16(value);

    if (dtype == LOFI_F64)
        memcpy(to, &value, sizeof value);
    else if (dtype == LOFI_F32)
        memcpy(to, &narrow, sizeof narrow);
    else if (dtype == LOFI_F16 || dtype == LOFI_BF16)
        memcpy(to, &half, sizeof half);
    else
        memcpy(to, &whole, lofi_dtype_bytes(dtype));
}

static double decode(lofi_dtype dtype, const char *from)
{
    double value;
    float narrow;
    uint16_t half;
    int64_t whole = 0;
    int32_t word;

    switch (dtype) {
    case LOFI_F64:
        memcpy(&value, from, sizeof value);
        return value;
    case LOFI_F32:
        memcpy(&narrow, from, sizeof narrow);
        return narrow;
    case LOFI_F16:
    case LOFI_BF16:
        memcpy(&half, from, sizeof half);
        return dtype == LOFI_F16 ? lofi__f16_to_f64(half) : lofi__bf16_to_f64(half);
    case LOFI_I32:
        memcpy(&word, from, sizeof word);
        return word;
    case LOFI_I64:
        memcpy(&whole, from, sizeof whole);
        return (double)whole;
    case LOFI_I8:
        return (signed char)*from;
    default:
        return (unsigned char)*from;
    }
}

/* ---- a case ---------------------------------------------------------------------------------- */

struct way {
    lofi_task task;
    int in_place, lists, posted, shifted;
};

static int slots_in(const struct way *way, int ranks)
{
    const lofi_collective c = way->task.collective;
    return c == LOFI_REDUCE_SCATTER || c == LOFI_ALL_TO_ALL ? ranks : 1;
}

static int slots_out(const struct way *way, int ranks)
{
    const lofi_collective c = way->task.collective;
    return c == LOFI_ALL_GATHER || c == LOFI_GATHER || c == LOFI_ALL_TO_ALL ? ranks : 1;
}

static double expected(const struct way *way, int rank, int ranks, int slot, size_t i)
{
    const lofi_task *task = &way->task;
    const int given = task->collective == LOFI_REDUCE_SCATTER ? rank : 0;

    if (task->collective == LOFI_BROADCAST) return number(task, task->root, 0, i);
    if (task->collective == LOFI_ALL_TO_ALL) return number(task, slot, rank, i);
    if (!lofi__reduces(task->collective)) return number(task, slot, 0, i);
    double sum = number(task, 0, given, i);
    if (task->op == LOFI_PREMUL_SUM) sum *= FACTOR;
    for (int from = 1; from < ranks; from++) {
        const double x = number(task, from, given, i);
        sum = task->op == LOFI_PRODUCT      ? sum * x
              : task->op == LOFI_MIN        ? fmin(sum, x)
              : task->op == LOFI_MAX        ? fmax(sum, x)
              : task->op == LOFI_PREMUL_SUM ? sum + FACTOR * x
                                            : sum + x;
    }
    return task->op == LOFI_AVG ? sum / ranks : sum;
}

/* Only means are rounded. */
static int is_right(const struct way *way, double got, double want)
{
    static const double unit[] = {
        [LOFI_F64] = 0x1p-52, [LOFI_F32] = 0x1p-23, [LOFI_F16] = 0x1p-10, [LOFI_BF16] = 0x1p-7};
    if (!lofi__reduces(way->task.collective) || way->task.op != LOFI_AVG) return got == want;
    return fabs(got - want) <= unit[way->task.dtype] * fabs(want);
}

struct room {
    char *in, *out; /* on the device */
    char *host;     /* what is on its way to `in` */
    size_t bytes;   /* of each */
    const void *in_list[GPUS_MOST];
    void *out_list[GPUS_MOST];
};

static void write_inputs(struct gpu *gpu, const struct way *way, struct room *room, char *to,
                         size_t distance)
{
    const size_t each = lofi_dtype_bytes(way->task.dtype), bytes = way->task.count * each;

    for (int slot = 0; slot < slots_in(way, gpu->count); slot++) {
        char *host = room->host + (size_t)slot * bytes;
        for (size_t i = 0; i < way->task.count; i++)
            encode(way->task.dtype, number(&way->task, gpu->rank, slot, i), host + i * each);
        if (bytes > 0)
            CHECK(fake_cuda.MemcpyAsync((uintptr_t)(to + (size_t)slot * distance), (uintptr_t)host,
                                        bytes, gpu->stream) == 0);
    }
}

static lofi_status run_task(lofi_comm *comm, const lofi_task *task, int posted)
{
    lofi_request *request = NULL;

    if (!posted) return lofi_run(comm, task);
    lofi_status st = lofi_post(comm, task, NULL, NULL, &request);
    if (st == LOFI_OK) st = lofi_request_wait(request, -1);
    lofi_request_destroy(request);
    return st;
}

static void check_outputs(const struct gpu *gpu, const struct way *way, const char *out,
                          size_t distance)
{
    const lofi_task *task = &way->task;
    const size_t each = lofi_dtype_bytes(task->dtype);
    const int to_root = task->collective == LOFI_REDUCE || task->collective == LOFI_GATHER;

    if (to_root && gpu->rank != task->root) return;
    for (int slot = 0; slot < slots_out(way, gpu->count); slot++)
        for (size_t i = 0; i < task->count; i++) {
            const double got = decode(task->dtype, out + (size_t)slot * distance + i * each);
            const double want = expected(way, gpu->rank, gpu->count, slot, i);
            if (CHECK(is_right(way, got, want))) continue;
            fprintf(stderr, "rank %d of %d, %s of %zu %s, %s, slot %d, [%zu] is %g, not %g%s%s\n",
                    gpu->rank, gpu->count, lofi_collective_name(task->collective), task->count,
                    lofi_dtype_name(task->dtype), lofi_op_name(task->op), slot, i, got, want,
                    way->in_place ? ", in place" : "", way->lists ? ", lists" : "");
            exit(1);
        }
}

static void run_way(struct gpu *gpu, lofi_comm *comm, const struct way *way, struct room *room)
{
    const size_t each = lofi_dtype_bytes(way->task.dtype), bytes = way->task.count * each;
    const size_t distance = bytes + (way->lists ? 3 * each : 0);
    const int in_slots = slots_in(way, gpu->count), out_slots = slots_out(way, gpu->count);
    lofi_task task = way->task;
    char *in = room->in + (way->shifted ? each : 0), *out = room->out + (way->shifted ? each : 0);

    memset(room->in, 0xa5, room->bytes);
    memset(room->out, 0x5a, room->bytes);
    if (way->in_place && in_slots > 1) out = in + (size_t)gpu->rank * distance;
    if (way->in_place && in_slots == 1)
        in = out + (out_slots > 1 ? (size_t)gpu->rank * distance : 0);
    const int gives = task.collective != LOFI_BROADCAST || gpu->rank == task.root;
    if (gives) write_inputs(gpu, way, room, task.collective == LOFI_BROADCAST ? out : in, distance);
    for (int slot = 0; slot < gpu->count; slot++) {
        room->in_list[slot] = in + (size_t)slot * distance;
        room->out_list[slot] = out + (size_t)slot * distance;
    }
    task.in = in;
    task.out = out;
    if (way->lists && in_slots > 1) task.in_list = room->in_list;
    if (way->lists && out_slots > 1) task.out_list = room->out_list;
    if (!CHECK(run_task(comm, &task, way->posted) == LOFI_OK)) exit(1);
    check_outputs(gpu, way, out, distance);
    if (!way->in_place) /* nothing past the end */
        CHECK(out[(size_t)(out_slots - 1) * distance + bytes] == 0x5a);
}

/* ---- all collectives ------------------------------------------------------------------------- */

static const size_t counts[] = {0, 1, 33, MOST_COUNT};

static void vary(struct way *way, int number)
{
    way->task.count = counts[number % 4];
    way->in_place = number / 4 % 2 && way->task.collective != LOFI_ALL_TO_ALL;
    way->lists = number / 8 % 2;
    way->posted = number % 3 == 0;
    way->shifted = number % 5 == 0;
}

static void run_reductions(struct gpu *gpu, lofi_comm *comm, struct room *room)
{
    static const lofi_collective reductions[] = {LOFI_ALL_REDUCE, LOFI_REDUCE, LOFI_REDUCE_SCATTER};
    static const lofi_op ops[] = {LOFI_SUM, LOFI_AVG, LOFI_PRODUCT,
                                  LOFI_MIN, LOFI_MAX, LOFI_PREMUL_SUM};
    static const lofi_dtype dtypes[] = {LOFI_F64, LOFI_F32, LOFI_F16, LOFI_BF16,
                                        LOFI_I8,  LOFI_U8,  LOFI_I32, LOFI_I64};
    struct way way = {.task = LOFI_TASK_INIT};

    for (int c = 0; c < 3; c++)
        for (int o = 0; o < 6; o++)
            for (int d = 0; d < 8; d++)
                for (int number = 0; number < 16; number++) {
                    way.task.collective = reductions[c];
                    way.task.op = ops[o];
                    way.task.dtype = dtypes[d];
                    way.task.factor = FACTOR;
                    way.task.root = (number + d) % gpu->count;
                    if (ops[o] == LOFI_AVG && d >= 4) continue;
                    vary(&way, number);
                    run_way(gpu, comm, &way, room);
                }
}

static void run_moves(struct gpu *gpu, lofi_comm *comm, struct room *room)
{
    static const lofi_collective moves[] = {LOFI_BROADCAST, LOFI_ALL_GATHER, LOFI_GATHER,
                                            LOFI_ALL_TO_ALL};
    static const lofi_dtype dtypes[] = {LOFI_BYTES, LOFI_F32, LOFI_I64, LOFI_BF16};
    struct way way = {.task = LOFI_TASK_INIT};

    for (int c = 0; c < 4; c++)
        for (int root = 0; root < gpu->count; root++)
            for (int number = 0; number < 32; number++) {
                way.task.collective = moves[c];
                way.task.dtype = dtypes[(number + number / 4) % 4];
                way.task.root = root;
                vary(&way, number);
                run_way(gpu, comm, &way, room);
                if (number % 8 == 0) CHECK(lofi_barrier(comm) == LOFI_OK);
            }
}

static struct room make_room(struct gpu *gpu, size_t bytes)
{
    return (struct room){.in = gpus_alloc(gpu, bytes),
                         .out = gpus_alloc(gpu, bytes),
                         .host = malloc(bytes),
                         .bytes = bytes};
}

static void free_room(struct room *room)
{
    free(room->host);
    fake_cuda_free(room->out);
    fake_cuda_free(room->in);
}

static void run_suite(struct gpu *gpu, lofi_comm *comm)
{
    struct room room = make_room(gpu, (size_t)gpu->count * (MOST_COUNT + 8) * 8);

    run_reductions(gpu, comm, &room);
    run_moves(gpu, comm, &room);
    free_room(&room);
}

static void suite(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, 20000);

    CHECK(strcmp(lofi_comm_transport(comm), "nccl") == 0);
    CHECK(lofi_comm_rank(comm) == gpu->rank && lofi_comm_rank_count(comm) == gpu->count);
    run_suite(gpu, comm);
    lofi_comm_destroy(comm);
}

/* Sizes of which NCCL loses 1, 2 or 31 elements on one rank, and some more. */
static void alone(struct gpu *gpu)
{
    static const struct {
        size_t bytes, more;
    } sizes[] = {{16384, 1}, {49152, 2}, {524288, 1}, {524288, 31}, {4096, 3}, {32768, 0}};
    static const lofi_collective reductions[] = {LOFI_ALL_REDUCE, LOFI_REDUCE, LOFI_REDUCE_SCATTER,
                                                 LOFI_REDUCE_SCATTER};
    static const lofi_dtype dtypes[] = {LOFI_F64, LOFI_F32, LOFI_F16, LOFI_BF16,
                                        LOFI_I8,  LOFI_U8,  LOFI_I32, LOFI_I64};
    lofi_comm *comm = gpus_comm(gpu, 20000);
    struct room room = make_room(gpu, 524288 + 64 * 8);
    struct way way = {.task = LOFI_TASK_INIT};

    for (int number = 0; number < 6 * 8 * 2; number++) {
        const int size = number % 6, d = number / 6 % 8, place = number / 48;
        const int c = (size + d + place) % 4;
        way.task.collective = reductions[c];
        way.task.dtype = dtypes[d];
        way.task.op = d < 4 && number % 5 == 0 ? LOFI_AVG : LOFI_PREMUL_SUM;
        way.task.factor = FACTOR;
        way.task.count = sizes[size].bytes / lofi_dtype_bytes(dtypes[d]) + sizes[size].more;
        way.lists = c == 3;
        way.in_place = place;
        run_way(gpu, comm, &way, &room);
    }
    free_room(&room);
    lofi_comm_destroy(comm);
}

/* The factor is taken in the data's type: 1/3 is another one in each. */
static void premul(struct gpu *gpu)
{
    static const lofi_dtype dtypes[] = {LOFI_F64, LOFI_F32, LOFI_F16, LOFI_BF16};
    static const double want[] = {1.0 / 3, (double)(1.0f / 3), 0x1.554p-2, 0x1.56p-2};
    lofi_comm *comm = gpus_comm(gpu, 5000);
    char *data = gpus_alloc(gpu, 8);

    for (int d = 0; d < 4; d++) {
        lofi_task task = LOFI_TASK_INIT;
        encode(dtypes[d], gpu->rank == 0 ? 1 : 0, data);
        task.collective = LOFI_ALL_REDUCE;
        task.dtype = dtypes[d];
        task.op = LOFI_PREMUL_SUM;
        task.factor = 1.0 / 3;
        task.count = 1;
        task.in = task.out = data;
        CHECK(lofi_run(comm, &task) == LOFI_OK);
        CHECK(decode(dtypes[d], data) == want[d]);
    }
    fake_cuda_free(data);
    lofi_comm_destroy(comm);
}

/* ---- streams --------------------------------------------------------------------------------- */

static lofi__cu_result wait_for_flag(void *ctx)
{
    const struct gpu *gpu = ctx;
    return atomic_load(&gpu->flags[1]) ? 0 : LOFI__CU_NOT_READY;
}

/* A posted collective waits for what the caller's stream had to do when it was posted, and for
 * nothing that came after. */
static void overlap(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, 10000);
    int32_t *data = gpus_alloc(gpu, sizeof *data), one = 1;
    lofi_task barrier = LOFI_TASK_INIT, sum = LOFI_TASK_INIT;
    lofi_request *request = NULL;

    sum.collective = LOFI_ALL_REDUCE;
    sum.dtype = LOFI_I32;
    sum.count = 1;
    sum.in = sum.out = data;
    CHECK(fake_cuda.MemcpyAsync((uintptr_t)data, (uintptr_t)&one, sizeof one, gpu->stream) == 0);
    if (gpu->rank == 0) {
        CHECK(lofi_post(comm, &barrier, NULL, NULL, NULL) == LOFI_OK);
        CHECK(lofi_post(comm, &sum, NULL, NULL, &request) == LOFI_OK);
        /* Before the sum gets its turn, since the barrier waits for the other rank. */
        CHECK(fake_cuda_enqueue(gpu->stream, wait_for_flag, NULL, gpu) == 0);
        atomic_store(&gpu->flags[0], 1);
        CHECK(lofi_request_wait(request, -1) == LOFI_OK);
        lofi_request_destroy(request);
        atomic_store(&gpu->flags[1], 1);
        CHECK(fake_cuda_finish(gpu->stream) == 0);
    } else {
        while (atomic_load(&gpu->flags[0]) == 0)
            gpus_sleep_ms(1);
        CHECK(lofi_run(comm, &barrier) == LOFI_OK);
        CHECK(lofi_run(comm, &sum) == LOFI_OK);
    }
    CHECK(*data == gpu->count);
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

static void on_default_stream(struct gpu *gpu, lofi_comm_options *options)
{
    options->stream = NULL;
    options->device = gpu->rank;
}

/* The default stream, and threads that have never used CUDA: of a post, and of a wait. */
static void *barrier_without_context(void *comm)
{
    return lofi_barrier(comm) == LOFI_OK ? comm : NULL;
}

static void default_stream(struct gpu *gpu)
{
    lofi_comm *comm = NULL;
    float *data = gpus_alloc(gpu, sizeof *data), two = 2;
    pthread_t thread;
    void *passed = NULL;

    CHECK(gpus_open(gpu, 5000, on_default_stream, &comm) == LOFI_OK);
    CHECK(fake_cuda.MemcpyAsync((uintptr_t)data, (uintptr_t)&two, sizeof two, NULL) == 0);
    CHECK(lofi_all_reduce(comm, data, data, 1, LOFI_F32, LOFI_PRODUCT) == LOFI_OK);
    CHECK(*data == (float)(1 << gpu->count));
    CHECK(pthread_create(&thread, NULL, barrier_without_context, comm) == 0);
    pthread_join(thread, &passed);
    CHECK(passed != NULL);
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

#define POSTS 100

/* More posts than events are kept. */
static void many_posts(struct gpu *gpu)
{
    lofi_comm *comm = gpus_comm(gpu, 20000);
    int32_t *data = gpus_alloc(gpu, POSTS * sizeof *data), host[POSTS];
    lofi_request *requests[POSTS];

    for (int i = 0; i < POSTS; i++) {
        lofi_task task = LOFI_TASK_INIT;
        host[i] = i + gpu->rank;
        CHECK(fake_cuda.MemcpyAsync((uintptr_t)&data[i], (uintptr_t)&host[i], sizeof *data,
                                    gpu->stream) == 0);
        task.collective = LOFI_ALL_REDUCE;
        task.dtype = LOFI_I32;
        task.count = 1;
        task.in = task.out = &data[i];
        CHECK(lofi_post(comm, &task, NULL, NULL, &requests[i]) == LOFI_OK);
    }
    for (int i = 0; i < POSTS; i++) {
        CHECK(lofi_request_wait(requests[i], -1) == LOFI_OK);
        CHECK(data[i] == gpu->count * i + gpu->count * (gpu->count - 1) / 2);
        lofi_request_destroy(requests[i]);
    }
    lofi_comm_destroy(comm);
    fake_cuda_free(data);
}

/* ---- parents --------------------------------------------------------------------------------- */

static int sum_of_ones(struct gpu *gpu, lofi_comm *comm)
{
    int32_t *data = gpus_alloc(gpu, sizeof *data);
    *data = 1;
    CHECK(lofi_all_reduce(comm, data, data, 1, LOFI_I32, LOFI_SUM) == LOFI_OK);
    const int sum = *data;
    fake_cuda_free(data);
    return sum;
}

/* Nodes of two and columns, out of the world: in the order that the ranks ask for. */
static void splits(struct gpu *gpu)
{
    const int size = 2, nodes = gpu->count / size;
    const int k = gpu->rank / size, place = size - 1 - gpu->rank % size; /* the other way round */
    lofi_comm *world = gpus_comm(gpu, 5000), *node = NULL, *column = NULL;
    int32_t *data = gpus_alloc(gpu, 8 * sizeof *data);

    CHECK(gpus_split(gpu, world, k, place, size, &node) == LOFI_OK);
    CHECK(gpus_split(gpu, world, 7 + place, k, nodes, &column) == LOFI_OK);
    CHECK(sum_of_ones(gpu, world) == gpu->count);
    lofi_comm_destroy(world); /* its children go on */
    CHECK(sum_of_ones(gpu, node) == size);
    CHECK(sum_of_ones(gpu, column) == nodes);
    data[0] = gpu->rank;
    CHECK(lofi_all_gather(node, data, data + 1, sizeof *data) == LOFI_OK);
    CHECK(data[1] == k * size + 1 && data[2] == k * size);
    CHECK(lofi_all_gather(column, data, data + 1, sizeof *data) == LOFI_OK);
    for (int i = 0; i < nodes; i++)
        CHECK(data[1 + i] == i * size + gpu->rank % size);
    lofi_comm_destroy(column);
    lofi_comm_destroy(node);
    fake_cuda_free(data);
}

static void suite_of_splits(struct gpu *gpu)
{
    lofi_comm *world = gpus_comm(gpu, 20000), *node = NULL;
    struct gpu inside = *gpu;

    inside.count = gpu->count / 2;
    inside.rank = gpu->rank / 2;
    CHECK(gpus_split(gpu, world, gpu->rank % 2, inside.rank, inside.count, &node) == LOFI_OK);
    run_suite(&inside, node);
    lofi_comm_destroy(node);
    lofi_comm_destroy(world);
}

int main(void)
{
    for (int count = 1; count <= 3; count++)
        gpus_run(count, suite, NULL);
    gpus_run(5, suite, NULL);
    gpus_run(1, alone, NULL);
    gpus_run(2, premul, NULL);
    gpus_run(2, overlap, NULL);
    gpus_run(3, default_stream, NULL);
    gpus_run(2, many_posts, NULL);
    gpus_run(4, suite_of_splits, NULL);

    const int inits = fake_cuda_calls("ncclCommInitRankConfig");
    gpus_run(4, splits, NULL);
    gpus_run(6, splits, NULL);
    EXPECT(fake_cuda_calls("ncclCommInitRankConfig") == inits + 4 + 6); /* the worlds */
    EXPECT(fake_cuda_calls("ncclCommAbort") == 0);
    EXPECT(fake_nccl_held().mismatches == 0);
    return test_end();
}
