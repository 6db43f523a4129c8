/* SPDX-License-Identifier: MIT */
/*
 * One suite for all transports: what every rank gets, against what it must get.
 *
 * Every rank makes up the inputs of all ranks, so it knows the result: the scalar kernels (which
 * test_fold.c compares with another truth) over the inputs in rank order, or the bytes themselves.
 * "host" runs over pipes of this test's own; slots of 4 KiB make many chunks out of little data.
 */
#define _GNU_SOURCE
#include "kernels/kernels.h"
#include "ranks.h"

#include <pthread.h>

#define MOST_COUNT 5000

/* ---- host functions over pipes --------------------------------------------------------------- */

struct pipes {
    int fd[RANKS_MOST][RANKS_MOST][2]; /* [from][to] */
};

struct host {
    const struct pipes *pipes;
    int rank, count;
};

static lofi_status write_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t done = write(fd, data, bytes);
        if (done <= 0) return LOFI_SYSTEM;
        data += done;
        bytes -= (size_t)done;
    }
    return LOFI_OK;
}

static lofi_status read_all(int fd, char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t done = read(fd, data, bytes);
        if (done <= 0) return LOFI_SYSTEM;
        data += done;
        bytes -= (size_t)done;
    }
    return LOFI_OK;
}

/* In pieces that a pipe holds, so that all may write before they read. */
#define PIPE_BYTES ((size_t)32 << 10)

static lofi_status host_all_to_all(void *ctx, const void *in, size_t bytes, void *out)
{
    const struct host *host = ctx;
    lofi_status st = LOFI_OK;

    for (size_t begin = 0; begin < bytes && st == LOFI_OK; begin += PIPE_BYTES) {
        const size_t size = bytes - begin < PIPE_BYTES ? bytes - begin : PIPE_BYTES;
        for (int to = 0; to < host->count && st == LOFI_OK; to++)
            st = write_all(host->pipes->fd[host->rank][to][1],
                           (const char *)in + (size_t)to * bytes + begin, size);
        for (int from = 0; from < host->count && st == LOFI_OK; from++)
            st = read_all(host->pipes->fd[from][host->rank][0],
                          (char *)out + (size_t)from * bytes + begin, size);
    }
    return st;
}

static lofi_status host_all_gather(void *ctx, const void *in, size_t bytes, void *out)
{
    const struct host *host = ctx;
    char *all = malloc((size_t)host->count * bytes + 1);

    for (int to = 0; to < host->count; to++)
        memcpy(all + (size_t)to * bytes, in, bytes);
    lofi_status st = host_all_to_all(ctx, all, bytes, out);
    free(all);
    return st;
}

static struct pipes *make_pipes(int count)
{
    struct pipes *pipes = malloc(sizeof *pipes);
    for (int from = 0; from < count; from++)
        for (int to = 0; to < count; to++)
            ASSERT(pipe(pipes->fd[from][to]) == 0);
    return pipes;
}

/* ---- a case ---------------------------------------------------------------------------------- */

struct suite {
    const char *transport;
    const struct pipes *pipes;
    int only_all_gather; /* host: leave out what is optional */
    size_t slot_bytes;
};

struct way {
    lofi_task task; /* collective, dtype, op, factor, root, count */
    int in_place;   /* out is in, or the one is this rank's slot of the other */
    int lists;      /* slots apart from each other */
    int posted;
    int misaligned; /* by one element, from a cache line */
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

static int reduces(lofi_collective c)
{
    return c == LOFI_ALL_REDUCE || c == LOFI_REDUCE || c == LOFI_REDUCE_SCATTER;
}

static int has_root(lofi_collective c)
{
    return c == LOFI_REDUCE || c == LOFI_BROADCAST || c == LOFI_GATHER;
}

/* What `rank` gives in slot `slot`: plain numbers of the dtype, or bytes. */
static void fill(char *data, const struct way *way, int rank, int slot)
{
    uint64_t seed = (uint64_t)(rank * 131 + slot + 1) * 7919 + way->task.count;
    const lofi_dtype dtype = way->task.dtype;
    const size_t each = lofi_dtype_bytes(dtype);

    for (size_t i = 0; i < way->task.count; i++) {
        uint64_t bits = test_random(&seed);
        double value = (double)(int)(bits % 2001) / 1000.0 - 1.0;
        float narrow = (float)value;
        uint32_t word;
        memcpy(&word, &narrow, sizeof word);
        uint16_t half = (uint16_t)(dtype == LOFI_BF16 ? word >> 16 : 0x3000 + bits % 0x1000);
        if (dtype == LOFI_F64)
            memcpy(data + i * each, &value, each);
        else if (dtype == LOFI_F32)
            memcpy(data + i * each, &narrow, each);
        else if (each == 2)
            memcpy(data + i * each, &half, each);
        else
            memcpy(data + i * each, &bits, each);
    }
}

struct buffers {
    char *in, *out;
    const void *in_list[RANKS_MOST];
    void *out_list[RANKS_MOST];
    char *reference;
    const void *operand[RANKS_MOST];
    char *operands;
};

/* The slot `rank` must get in its slot `slot`. NULL: untouched. */
static const char *expected(const struct way *way, int ranks, int rank, int slot, struct buffers *b)
{
    const lofi_task *task = &way->task;
    const size_t bytes = task->count * lofi_dtype_bytes(task->dtype);

    if (has_root(task->collective) && task->collective != LOFI_BROADCAST && rank != task->root)
        return NULL;
    if (task->collective == LOFI_BROADCAST) {
        fill(b->reference, way, task->root, 0);
    } else if (reduces(task->collective)) {
        for (int from = 0; from < ranks; from++) {
            b->operand[from] = b->operands + (size_t)from * bytes;
            fill(b->operands + (size_t)from * bytes, way, from,
                 task->collective == LOFI_REDUCE_SCATTER ? rank : 0);
        }
        lofi__kernels_scalar.fold[task->op][task->dtype](b->reference, b->operand, ranks,
                                                         task->factor, task->count);
    } else {
        fill(b->reference, way, slot, task->collective == LOFI_ALL_TO_ALL ? rank : 0);
    }
    return b->reference;
}

static void run_way(lofi_comm *comm, const struct way *way, struct buffers *b)
{
    const int rank = lofi_comm_rank(comm), ranks = lofi_comm_rank_count(comm);
    const size_t each = lofi_dtype_bytes(way->task.dtype), bytes = way->task.count * each;
    const size_t shift = way->misaligned ? each : 0;
    const size_t gap = way->lists ? 3 * each : 0; /* between the slots */
    const int in_slots = slots_in(way, ranks), out_slots = slots_out(way, ranks);
    lofi_task task = way->task;
    char *in = b->in + shift, *out = b->out + shift;

    memset(b->out, 0x5a, (size_t)ranks * (MOST_COUNT + 4) * 8);
    if (way->in_place && in_slots > 1) out = in + (size_t)rank * (bytes + gap);
    if (way->in_place && in_slots == 1)
        in = out + (out_slots > 1 ? (size_t)rank * (bytes + gap) : 0);
    task.in = in;
    task.out = out;
    for (int slot = 0; slot < in_slots; slot++) {
        b->in_list[slot] = in + (size_t)slot * (bytes + gap);
        fill(in + (size_t)slot * (bytes + gap), way, rank, slot);
    }
    for (int slot = 0; slot < out_slots; slot++)
        b->out_list[slot] = out + (size_t)slot * (bytes + gap);
    if (task.collective == LOFI_BROADCAST && rank == task.root) memcpy(out, in, bytes);
    if (way->lists && in_slots > 1) task.in_list = b->in_list;
    if (way->lists && out_slots > 1) task.out_list = b->out_list;

    if (way->posted) {
        lofi_request *request = NULL;
        ASSERT(lofi_post(comm, &task, NULL, NULL, &request) == LOFI_OK);
        ASSERT(lofi_request_wait(request, -1) == LOFI_OK);
        lofi_request_destroy(request);
    } else {
        ASSERT(lofi_run(comm, &task) == LOFI_OK);
    }
    for (int slot = 0; slot < out_slots; slot++) {
        const char *got = out + (size_t)slot * (bytes + gap);
        const char *want = expected(way, ranks, rank, slot, b);
        if (want == NULL || bytes == 0) continue;
        if (!EXPECT(memcmp(got, want, bytes) == 0)) {
            fprintf(stderr, "rank %d of %d, %s of %zu %s, %s, slot %d%s%s%s\n", rank, ranks,
                    lofi_collective_name(task.collective), task.count, lofi_dtype_name(task.dtype),
                    lofi_op_name(task.op), slot, way->in_place ? ", in place" : "",
                    way->lists ? ", lists" : "", way->posted ? ", posted" : "");
            exit(1);
        }
        /* Nothing is written past the last one. */
        if (slot == out_slots - 1 && !way->in_place) EXPECT(got[bytes] == 0x5a);
    }
}

/* ---- the suite ------------------------------------------------------------------------------- */

static const size_t counts[] = {0, 1, 31, 512, 1000, 1537, MOST_COUNT};

static void run_reductions(lofi_comm *comm, struct buffers *b)
{
    const int ranks = lofi_comm_rank_count(comm);
    struct way way = {.task = LOFI_TASK_INIT};
    int number = 0;

    for (int c = 0; c < LOFI_COLLECTIVE_COUNT; c++) {
        if (!reduces((lofi_collective)c)) continue;
        for (int dtype = 0; dtype < LOFI_DTYPE_COUNT; dtype++)
            for (int op = 0; op < LOFI_OP_COUNT; op++) {
                if (lofi__kernels_scalar.fold[op][dtype] == NULL) continue;
                for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++, number++) {
                    way.task.collective = (lofi_collective)c;
                    way.task.dtype = (lofi_dtype)dtype;
                    way.task.op = (lofi_op)op;
                    way.task.factor = 3;
                    way.task.count = counts[i];
                    way.task.root = number % ranks;
                    way.in_place = number % 2;
                    way.lists = number % 3 == 0;
                    way.posted = number % 5 == 0;
                    way.misaligned = number % 7 == 0;
                    run_way(comm, &way, b);
                }
            }
    }
}

static void run_moves(lofi_comm *comm, struct buffers *b)
{
    static const lofi_collective moves[] = {LOFI_BROADCAST, LOFI_ALL_GATHER, LOFI_GATHER,
                                            LOFI_ALL_TO_ALL};
    static const lofi_dtype dtypes[] = {LOFI_BYTES, LOFI_F32, LOFI_I64, LOFI_BF16};
    struct way way = {.task = LOFI_TASK_INIT};

    for (int c = 0; c < 4; c++)
        for (int root = 0; root < lofi_comm_rank_count(comm); root++)
            for (int number = 0; number < 56; number++) {
                way.task.collective = moves[c];
                way.task.dtype = dtypes[number % 4];
                way.task.count = counts[number % 7];
                way.task.root = root;
                /* all_to_all has no slot that is both sides' */
                way.in_place = number / 7 % 2 && moves[c] != LOFI_ALL_TO_ALL;
                way.lists = number / 14 % 2;
                way.posted = number / 28 % 2;
                way.misaligned = number % 3 == 0;
                run_way(comm, &way, b);
                if (number % 8 == 0) ASSERT(lofi_barrier(comm) == LOFI_OK);
            }
}

static lofi_comm *make_comm(struct rank *rank, const struct suite *suite, struct host *host)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_host_functions functions = LOFI_HOST_FUNCTIONS_INIT;
    lofi_comm *comm = NULL;

    functions.all_gather = host_all_gather;
    if (!suite->only_all_gather) functions.all_to_all = host_all_to_all;
    functions.ctx = host;
    options.transport = suite->transport;
    options.rank = rank->rank;
    options.rank_count = rank->count;
    options.slot_bytes = suite->slot_bytes;
    options.host = &functions;
    ASSERT(lofi_comm_create(&options, ranks_allgather, rank, &comm) == LOFI_OK);
    EXPECT(lofi_comm_rank(comm) == rank->rank && lofi_comm_rank_count(comm) == rank->count);
    EXPECT(strcmp(lofi_comm_transport(comm), suite->transport) == 0);
    return comm;
}

static int run_suite(struct rank *rank)
{
    const struct suite *suite = rank->arg;
    struct host host = {suite->pipes, rank->rank, rank->count};
    const size_t room = (size_t)rank->count * (MOST_COUNT + 4) * 8;
    struct buffers b = {.in = aligned_alloc(64, (room + 63) / 64 * 64),
                        .out = aligned_alloc(64, (room + 63) / 64 * 64),
                        .reference = malloc(room),
                        .operands = malloc(room)};
    lofi_comm *comm = make_comm(rank, suite, &host);

    run_reductions(comm, &b);
    run_moves(comm, &b);
    lofi_comm_destroy(comm);
    free(b.operands);
    free(b.reference);
    free(b.out);
    free(b.in);
    return test_failures != 0;
}

/* Barriers hold: nobody leaves one before all have come. */
static int run_barriers(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 10000);

    for (int round = 0; round < 200; round++) {
        atomic_fetch_add(&rank->board->flag[round % 2], 1);
        ASSERT(lofi_barrier(comm) == LOFI_OK);
        EXPECT(atomic_load(&rank->board->flag[round % 2]) == rank->count * (round / 2 + 1));
        ASSERT(lofi_barrier(comm) == LOFI_OK);
    }
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* Many posts at once, with callbacks, mixed with blocking calls: in the order of issue. */
struct log {
    _Atomic int done;
    int order_broken;
};

static void note(void *ctx, lofi_status status, const char *error)
{
    struct log *log = ctx;
    (void)error;
    if (status != LOFI_OK) log->order_broken = 1;
    atomic_fetch_add(&log->done, 1);
}

#define POSTS 200

static int run_posts(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 10000);
    static float data[POSTS][300];
    static lofi_request *requests[POSTS];
    struct log log = {0, 0};

    for (int i = 0; i < POSTS; i++) {
        lofi_task task = LOFI_TASK_INIT;
        for (int k = 0; k < 300; k++)
            data[i][k] = (float)(i + rank->rank);
        task.collective = LOFI_ALL_REDUCE;
        task.dtype = LOFI_F32;
        task.count = 300;
        task.in = task.out = data[i];
        ASSERT(lofi_post(comm, &task, note, &log, i % 3 == 0 ? NULL : &requests[i]) == LOFI_OK);
        if (i % 50 == 49) {
            ASSERT(lofi_barrier(comm) == LOFI_OK);
            EXPECT(atomic_load(&log.done) == i + 1); /* it ran after all that was posted */
        }
    }
    for (int i = 0; i < POSTS; i++) {
        if (requests[i] == NULL) continue;
        EXPECT(lofi_request_wait(requests[i], 5000) == LOFI_OK);
        EXPECT(lofi_request_test(requests[i]) == LOFI_OK);
        EXPECT(data[i][299] == (float)(rank->count * i + rank->count * (rank->count - 1) / 2));
    }
    EXPECT(!log.order_broken);
    lofi_comm_destroy(comm);
    for (int i = 0; i < POSTS; i++)
        lofi_request_destroy(requests[i]); /* allowed after their communicator */
    return test_failures != 0;
}

/* A caller hears of the beginning where the collective runs: of a posted one not before its turn. */
struct turn_log {
    pthread_t thread;
    int begun, begun_at_end;
};

static void note_begun(void *ctx)
{
    struct turn_log *log = ctx;
    log->thread = pthread_self();
    log->begun++;
}

static void note_end(void *ctx, lofi_status status, const char *error)
{
    struct turn_log *log = ctx;
    (void)error;
    log->begun_at_end =
        status == LOFI_OK && pthread_equal(log->thread, pthread_self()) != 0 ? log->begun : -1;
}

static int run_begun(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 10000);
    struct turn_log logs[2] = {{0}}, now = {0};
    lofi_request *requests[2];
    lofi_task task = LOFI_TASK_INIT;

    task.begun = note_begun;
    for (int i = 0; i < 2; i++) {
        task.begun_ctx = &logs[i];
        ASSERT(lofi_post(comm, &task, note_end, &logs[i], &requests[i]) == LOFI_OK);
    }
    for (int i = 0; i < 2; i++) {
        EXPECT(lofi_request_wait(requests[i], 5000) == LOFI_OK);
        lofi_request_destroy(requests[i]);
    }
    task.begun_ctx = &now;
    EXPECT(lofi_run(comm, &task) == LOFI_OK);
    EXPECT(now.begun == 1 && pthread_equal(now.thread, pthread_self()) != 0);
    EXPECT(logs[0].begun_at_end == 1 && logs[1].begun_at_end == 1);
    lofi_comm_abort(comm);
    EXPECT(lofi_run(comm, &task) != LOFI_OK);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* A wait with a limit that passes leaves the collective alone. */
static int run_impatient(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 10000);
    lofi_task task = LOFI_TASK_INIT;
    lofi_request *request = NULL;

    if (rank->rank == 0) {
        ASSERT(lofi_post(comm, &task, NULL, NULL, &request) == LOFI_OK);
        EXPECT(lofi_request_test(request) == LOFI_IN_PROGRESS);
        EXPECT(lofi_request_wait(request, 50) == LOFI_IN_PROGRESS);
        atomic_store(&rank->board->flag[0], 1);
        EXPECT(lofi_request_wait(request, -1) == LOFI_OK);
        lofi_request_destroy(request);
    } else {
        while (atomic_load(&rank->board->flag[0]) == 0)
            ranks_sleep(1e-3);
        EXPECT(lofi_run(comm, &task) == LOFI_OK);
    }
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* What is posted while a blocking call runs is run although nobody waits for it. */
static void *enter_barrier(void *comm)
{
    return lofi_barrier(comm) == LOFI_OK ? comm : NULL;
}

static int run_post_behind(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 10000);
    lofi_task task = LOFI_TASK_INIT;
    struct log log = {0, 0};
    pthread_t blocked;
    void *passed = NULL;

    if (rank->rank == 0) {
        ASSERT(pthread_create(&blocked, NULL, enter_barrier, comm) == 0);
        ranks_sleep(0.05);
        ASSERT(lofi_post(comm, &task, note, &log, NULL) == LOFI_OK);
        pthread_join(blocked, &passed);
        EXPECT(passed != NULL);
        for (int i = 0; i < 5000 && atomic_load(&log.done) == 0; i++)
            ranks_sleep(1e-3);
        EXPECT(atomic_load(&log.done) == 1 && !log.order_broken);
    } else {
        ranks_sleep(0.1);
        EXPECT(lofi_barrier(comm) == LOFI_OK);
        EXPECT(lofi_barrier(comm) == LOFI_OK);
    }
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* Slots are never too small for a line for each rank; a list of one is a list. */
static int run_many(struct rank *rank)
{
    struct suite small = {"shm", NULL, 0, 4096};
    lofi_comm *comm = make_comm(rank, &small, NULL);
    lofi_task task = LOFI_TASK_INIT;
    char in[RANKS_MOST], out[RANKS_MOST];

    memset(in, rank->rank, sizeof in);
    task.collective = LOFI_ALL_TO_ALL;
    task.count = 1;
    task.in = in;
    task.out = out;
    EXPECT(lofi_run(comm, &task) == LOFI_OK);
    for (int i = 0; i < rank->count; i++)
        EXPECT(out[i] == i);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

static void test_one(void)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;
    lofi_task task = LOFI_TASK_INIT;
    int in = 3, out = 0;
    const void *in_list[1] = {&in};
    void *out_list[1] = {&out};

    options.transport = "self";
    ASSERT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_OK);
    task.collective = LOFI_ALL_TO_ALL;
    task.dtype = LOFI_I32;
    task.count = 1;
    task.in_list = in_list;
    task.out_list = out_list;
    EXPECT(lofi_run(comm, &task) == LOFI_OK && out == 3);
    lofi_comm_destroy(comm);
}

int main(void)
{
    struct suite shm = {"shm", NULL, 0, 4096}, roomy = {"shm", NULL, 0, 0};
    struct suite self = {"self", NULL, 0, 0};

    EXPECT(ranks_all_passed(1, 60, run_suite, &self));
    for (int count = 1; count <= 5; count++)
        EXPECT(ranks_all_passed(count, 60, run_suite, &shm));
    EXPECT(ranks_all_passed(2, 60, run_suite, &roomy));
    for (int count = 1; count <= 3; count++) {
        struct pipes *pipes = make_pipes(count);
        struct suite host = {"host", pipes, 0, 0}, least = {"host", pipes, 1, 0};
        EXPECT(ranks_all_passed(count, 60, run_suite, &host));
        EXPECT(ranks_all_passed(count, 60, run_suite, &least));
        free(pipes);
    }
    EXPECT(ranks_all_passed(3, 30, run_barriers, NULL));
    EXPECT(ranks_all_passed(2, 30, run_posts, NULL));
    EXPECT(ranks_all_passed(3, 30, run_posts, NULL));
    EXPECT(ranks_all_passed(2, 30, run_begun, NULL));
    EXPECT(ranks_all_passed(2, 30, run_impatient, NULL));
    EXPECT(ranks_all_passed(2, 30, run_post_behind, NULL));
    EXPECT(ranks_all_passed(RANKS_MOST, 60, run_many, NULL));
    test_one();
    return test_end();
}
