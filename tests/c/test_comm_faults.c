/* SPDX-License-Identifier: MIT */
/*
 * What becomes of the others when a rank dies, stops, leaves or does something else: an error that
 * names the rank and the collective, in time; and nothing left behind.
 */
#define _GNU_SOURCE
#include "ranks.h"
#include "transport/shm_open.h"
#include "transport/shm_segment.h"

#include <dirent.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>

#define COUNT ((size_t)1 << 20)
#define VICTIM 1

static int left_in_dev_shm(void)
{
    DIR *folder = opendir("/dev/shm");
    int found = 0;

    if (folder == NULL) return 0;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder))
        found += entry->d_type == DT_REG && strncmp(entry->d_name, "lofi-", 5) == 0;
    closedir(folder);
    return found;
}

/* All-reduces until one fails; gives its status and checks that it came in `seconds`. */
static lofi_status reduce_until_failure(lofi_comm *comm, struct rank *rank, double seconds)
{
    float *data = calloc(COUNT, sizeof *data);
    lofi_status st = LOFI_OK;
    double begin = 0;

    do {
        begin = ranks_now();
        st = lofi_all_reduce(comm, data, data, COUNT, LOFI_F32, LOFI_SUM);
        atomic_fetch_add(&rank->board->flag[1], st == LOFI_OK);
    } while (st == LOFI_OK);
    EXPECT(ranks_now() - begin < seconds);
    free(data);
    return st;
}

static void expect_broken(lofi_comm *comm)
{
    char first[3072];

    snprintf(first, sizeof first, "%s", lofi_last_error());
    EXPECT(lofi_barrier(comm) != LOFI_OK);
    EXPECT_ERROR("broken since");
    EXPECT(strncmp(first, lofi_last_error(), strlen(first)) == 0);
}

/* ---- death, stop, departure ------------------------------------------------------------------ */

static int killed(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 15000);

    if (rank->rank == VICTIM) {
        float *data = calloc(COUNT, sizeof *data);
        for (int i = 0; i < 3; i++)
            lofi_all_reduce(comm, data, data, COUNT, LOFI_F32, LOFI_SUM);
        /* A timer kills in the middle of one, wherever that is. */
        if (fork() == 0) {
            ranks_sleep(0.02);
            kill(getppid(), SIGKILL);
            _exit(0);
        }
        for (;;)
            lofi_all_reduce(comm, data, data, COUNT, LOFI_F32, LOFI_SUM);
    }
    EXPECT(reduce_until_failure(comm, rank, 3) == LOFI_PEER_LOST);
    EXPECT_ERROR("all_reduce of test: rank 1 is gone");
    EXPECT_ERROR("ended");
    expect_broken(comm);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* The victim is killed and not waited for: a zombie, which kill(pid, 0) still finds. */
static void test_killed(int count)
{
    int exits[RANKS_MOST];

    ranks_run(count, 30, killed, NULL, exits);
    for (int i = 0; i < count; i++)
        EXPECT(exits[i] == (i == VICTIM ? 128 + SIGKILL : 0));
    EXPECT(left_in_dev_shm() == 0);
}

static int stopped(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 700);

    if (rank->rank == 0) {
        ranks_sleep(0.3);
        kill(atomic_load(&rank->board->pid[VICTIM]), SIGSTOP);
    }
    const double begin = ranks_now();
    lofi_status st = reduce_until_failure(comm, rank, rank->rank == VICTIM ? 20 : 2);
    EXPECT(st == LOFI_TIMED_OUT);
    EXPECT(ranks_now() - begin < 20);
    EXPECT_ERROR("Timed out waiting: rank 1 did not come in time");
    EXPECT_ERROR("all_reduce of test");
    if (rank->rank != VICTIM) EXPECT_ERROR("stopped");
    expect_broken(comm);
    lofi_comm_destroy(comm);
    atomic_fetch_add(&rank->board->flag[0], 1);
    if (rank->rank == 0) {
        while (atomic_load(&rank->board->flag[0]) < rank->count - 1)
            ranks_sleep(1e-3);
        kill(atomic_load(&rank->board->pid[VICTIM]), SIGCONT); /* it finds out as well */
    }
    return test_failures != 0;
}

static int departed(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 15000);

    if (rank->rank == VICTIM) {
        ranks_sleep(0.05); /* the others are asleep in theirs */
        lofi_comm_destroy(comm);
        while (atomic_load(&rank->board->flag[0]) < rank->count - 1)
            ranks_sleep(1e-3);
        return 0;
    }
    const double begin = ranks_now();
    EXPECT(lofi_barrier(comm) == LOFI_PEER_LOST);
    EXPECT(ranks_now() - begin < 3);
    EXPECT_ERROR("barrier of test: rank 1 is gone");
    EXPECT_ERROR("closed the communicator");
    atomic_fetch_add(&rank->board->flag[0], 1);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* Who leaves after its part is done takes nothing from those who are still in it. */
static int leaves_early(struct rank *rank)
{
    for (int round = 0; round < 50; round++) {
        lofi_comm *comm = NULL;
        float data[64];
        for (int i = 0; i < 64; i++)
            data[i] = (float)rank->rank;
        if (rank->round >= RANKS_ROUNDS - 5) break;
        comm = ranks_comm(rank, 10000);
        EXPECT(lofi_all_reduce(comm, data, data, 64, LOFI_F32, LOFI_SUM) == LOFI_OK);
        EXPECT(data[63] == (float)(rank->count * (rank->count - 1) / 2));
        lofi_comm_destroy(comm);
    }
    return test_failures != 0;
}

/* The same for a process that ends: the other, asleep, may look at it in between. */
static int ends_at_once(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 10000);

    if (rank->rank == VICTIM) ranks_sleep(0.004 + 0.001 * (rank->board->pid[0] % 37));
    EXPECT(lofi_barrier(comm) == LOFI_OK);
    if (rank->rank == VICTIM) _exit(test_failures != 0);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

static int aborted(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 15000);

    if (rank->rank == VICTIM) {
        ranks_sleep(0.05);
        lofi_comm_abort(comm);
    }
    const double begin = ranks_now();
    EXPECT(lofi_barrier(comm) == LOFI_PEER_LOST);
    EXPECT(ranks_now() - begin < 3);
    EXPECT_ERROR("rank 1 has aborted");
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* ---- ranks that do not do the same ----------------------------------------------------------- */

struct difference {
    lofi_task others, victims;
    const char *shown; /* of the victim's, in the error of the others */
};

static int differs(struct rank *rank)
{
    const struct difference *difference = rank->arg;
    static double data[4][64];
    lofi_comm *comm = ranks_comm(rank, 10000);
    lofi_task task = rank->rank == VICTIM ? difference->victims : difference->others;

    task.in = data;
    task.out = data;
    for (int i = 0; i < 3; i++)
        EXPECT(lofi_barrier(comm) == LOFI_OK);
    const double begin = ranks_now();
    lofi_status st = lofi_run(comm, &task);
    /* Not everyone waits for all in every collective: then the next one tells. */
    if (st == LOFI_OK) st = lofi_barrier(comm);
    if (st == LOFI_OK) st = lofi_barrier(comm);
    EXPECT(st == LOFI_STATE);
    EXPECT(ranks_now() - begin < 3);
    EXPECT_ERROR("rank 1");
    if (rank->rank == 0) EXPECT_ERROR(difference->shown);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

static void test_differences(void)
{
    lofi_task sum = LOFI_TASK_INIT, other = LOFI_TASK_INIT;
    struct difference cases[6];

    sum.collective = LOFI_ALL_REDUCE;
    sum.dtype = LOFI_F32;
    sum.count = 60;
    for (size_t i = 0; i < 6; i++)
        cases[i] = (struct difference){sum, sum, ""};
    cases[0].victims.count = 30;
    cases[0].shown = "all_reduce of 30 float32, SUM";
    cases[1].victims.dtype = LOFI_I32;
    cases[1].shown = "all_reduce of 60 int32, SUM";
    cases[2].victims.op = LOFI_MAX;
    cases[2].shown = "all_reduce of 60 float32, MAX";
    cases[3].victims = other;
    cases[3].shown = "barrier";
    cases[4].victims.op = cases[4].others.op = LOFI_PREMUL_SUM;
    cases[4].victims.factor = 2;
    cases[4].shown = "PREMUL_SUM";
    cases[5].victims.collective = cases[5].others.collective = LOFI_BROADCAST;
    cases[5].victims.count = 61;
    cases[5].shown = "";
    for (size_t i = 0; i < 6; i++)
        for (int count = 2; count <= 3; count++)
            EXPECT(ranks_all_passed(count, 20, differs, &cases[i]));
}

/* Who gives waits for nobody, and must not take what an earlier, equal collective left for an answer:
 * both are roots of a broadcast, of one chunk and of several. */
static int gives_only(struct rank *rank)
{
    static char data[3 << 20];
    lofi_comm *comm = ranks_comm(rank, 5000);
    float ones[16];
    lofi_status st = LOFI_OK;
    int seen = 0;

    for (int i = 0; i < 4; i++)
        EXPECT(lofi_all_reduce(comm, data, data, 16, LOFI_F32, LOFI_SUM) == LOFI_OK);
    memset(data, 0x42, sizeof data);
    st = lofi_broadcast(comm, data, rank->rank == VICTIM ? sizeof data : 16, rank->rank);
    for (int i = 0; i < 3 && st == LOFI_OK; i++, seen++) {
        for (int k = 0; k < 16; k++)
            ones[k] = 1;
        st = lofi_all_reduce(comm, ones, ones, 16, LOFI_F32, LOFI_SUM);
        if (st == LOFI_OK) EXPECT(ones[0] == 2);
    }
    EXPECT(st == LOFI_STATE && seen <= 1);
    EXPECT_ERROR("in broadcast of 3145728 bytes, root 1");
    EXPECT_ERROR("in broadcast of 16 bytes, root 0");
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

/* ---- the memory ------------------------------------------------------------------------------ */

static void test_headers(void)
{
    struct lofi__shm_segment made, opened;

    for (int kind = 0; kind < LOFI__SHM_KINDS; kind++) {
        ASSERT(lofi__segment_create(&made, kind, 3, 5000) == LOFI_OK);
        EXPECT(left_in_dev_shm() == (kind == LOFI__SHM_FILE));
        struct lofi__shm_header *header = made.header;
        const struct lofi__shm_header good = *header;

        ASSERT(lofi__segment_open(&opened, &made.place, 3) == LOFI_OK);
        strcpy(lofi__segment_slot(&made, 2, 1), "here");
        EXPECT(strcmp(lofi__segment_slot(&opened, 2, 1), "here") == 0);
        EXPECT((uintptr_t)lofi__segment_slot(&opened, 1, 1) % LOFI__SHM_LINE == 0);
        lofi__segment_close(&opened);

        header->magic++;
        EXPECT(lofi__segment_open(&opened, &made.place, 3) == LOFI_CORRUPT);
        header->magic = good.magic;
        header->layout++;
        EXPECT(lofi__segment_open(&opened, &made.place, 3) == LOFI_ABI);
        EXPECT_ERROR("same release");
        header->layout = good.layout;
        header->lofi_version++;
        EXPECT(lofi__segment_open(&opened, &made.place, 3) == LOFI_ABI);
        header->lofi_version = good.lofi_version;
        header->slot_bytes += LOFI__SHM_LINE;
        EXPECT(lofi__segment_open(&opened, &made.place, 3) == LOFI_CORRUPT);
        header->slot_bytes = good.slot_bytes;
        EXPECT(lofi__segment_open(&opened, &made.place, 4) == LOFI_CORRUPT);
        EXPECT(opened.header == NULL);

        struct lofi__shm_place wrong = made.place;
        wrong.nonce++;
        EXPECT(lofi__segment_open(&opened, &wrong, 3) == LOFI_CORRUPT);
        wrong = made.place;
        wrong.bytes += 4096;
        EXPECT(lofi__segment_open(&opened, &wrong, 3) == LOFI_CORRUPT);
        EXPECT_ERROR("bytes");

        wrong = made.place;
        lofi__segment_seal(&made); /* now nobody finds it */
        EXPECT(left_in_dev_shm() == 0);
        EXPECT(lofi__segment_open(&opened, &wrong, 3) != LOFI_OK);
        lofi__segment_close(&made);
    }
}

static lofi_status open_kinds(struct rank *rank, unsigned kinds, void **state)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    static int labels[RANKS_MOST];
    static struct lofi__members members;

    for (int i = 0; i < rank->count; i++)
        labels[i] = i;
    members = (struct lofi__members){rank->rank, rank->count, labels, "test"};
    return lofi__shm_open_kinds(&members, &options, ranks_allgather, rank, kinds, state);
}

/* A /dev/shm of 64 KiB. The first kind does not need it; the second one says so on every rank. */
static int without_room(struct rank *rank)
{
    void *state = NULL;

    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=64k") != 0)
        return 77;
    EXPECT(open_kinds(rank, 1u << LOFI__SHM_FILE, &state) == LOFI_SYSTEM);
    EXPECT_ERROR("rank 0");
    EXPECT_ERROR("/dev/shm");
    EXPECT(left_in_dev_shm() == 0);
    ASSERT(open_kinds(rank, ~0u, &state) == LOFI_OK);
    lofi__shm_close(state, 0);
    return test_failures != 0;
}

struct line {
    lofi_log_level level;
    char text[512];
};

static void keep_line(void *ctx, lofi_log_level level, const char *text)
{
    struct line *line = ctx;
    line->level = level;
    snprintf(line->text, sizeof line->text, "%s", text);
}

static lofi_status refuse_to_gather(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx, (void)mine, (void)bytes, (void)all;
    return LOFI_TIMED_OUT;
}

static lofi_comm *local_comm(struct rank *rank, int count)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;

    options.rank = count > 1 ? rank->rank : 0;
    options.rank_count = count;
    options.name = "node 7";
    EXPECT(lofi_comm_create_local(&options, ranks_allgather, rank, "gloo", &comm) == LOFI_OK);
    return comm;
}

/* Ranks of one machine share memory; one alone has nothing to share. */
static int together(struct rank *rank)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = local_comm(rank, rank->count), *alone = local_comm(rank, 1);

    EXPECT(strcmp(lofi_comm_transport(comm), "shm") == 0);
    EXPECT(strcmp(lofi_comm_transport(alone), "self") == 0);
    EXPECT(lofi_barrier(comm) == LOFI_OK);
    lofi_comm_destroy(alone);
    lofi_comm_destroy(comm);
    options.rank_count = 2;
    EXPECT(lofi_comm_create_local(&options, refuse_to_gather, NULL, "gloo", &comm) ==
           LOFI_TIMED_OUT);
    EXPECT(lofi_comm_create_local(NULL, ranks_allgather, rank, "gloo", &comm) == LOFI_INVALID);
    return test_failures != 0;
}

/* No file may grow, a shared one neither. The first rank warns of it once, and all get no
 * communicator. */
static int without_memory(struct rank *rank)
{
    const struct rlimit few = {4096, 4096};
    struct line line;

    signal(SIGXFSZ, SIG_IGN);
    ASSERT(setrlimit(RLIMIT_FSIZE, &few) == 0);
    lofi_log_set_level(LOFI_LOG_INFO);
    lofi_log_set_callback(keep_line, &line);
    for (int i = 0; i < 2; i++) {
        line = (struct line){LOFI_LOG_ERROR, ""};
        EXPECT(local_comm(rank, rank->count) == NULL);
        EXPECT(line.level == (rank->rank == 0 && i == 0 ? LOFI_LOG_WARN : LOFI_LOG_INFO));
        EXPECT_TEXT(line.text, "no memory can be shared in node 7, so gloo moves its data");
        EXPECT_TEXT(line.text, "LOFI_SHM=0");
    }
    lofi_comm_destroy(local_comm(rank, 1)); /* one rank needs no memory */
    return test_failures != 0;
}

/* Another network namespace is another machine, to every rank. */
static int elsewhere(struct rank *rank)
{
    struct line line = {LOFI_LOG_ERROR, ""};
    void *state = NULL;

    if (rank->rank == VICTIM && unshare(CLONE_NEWNET) != 0) return 77;
    EXPECT(open_kinds(rank, ~0u, &state) == LOFI_UNSUPPORTED);
    EXPECT_ERROR("ranks 0 and 1 do not share a machine: another network namespace");
    lofi_log_set_level(LOFI_LOG_INFO);
    lofi_log_set_callback(keep_line, &line);
    EXPECT(local_comm(rank, rank->count) == NULL);
    EXPECT(line.level == LOFI_LOG_INFO);
    EXPECT_TEXT(line.text, "node 7 uses gloo: ranks 0 and 1 do not share a machine");
    return test_failures != 0;
}

/* Only the first rank's /dev/shm holds the file: the others can't map it, and all fall back. */
static int apart(struct rank *rank)
{
    void *state = NULL;

    if (rank->rank == 0 &&
        (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
         mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=64m") != 0))
        return 77;
    EXPECT(open_kinds(rank, 1u << LOFI__SHM_FILE, &state) == LOFI_SYSTEM);
    EXPECT_ERROR("rank 1: shared memory /dev/shm/lofi-");
    EXPECT(left_in_dev_shm() == 0);
    return test_failures != 0;
}

static void run_as_root(const char *what, int (*job)(struct rank *))
{
    int exits[RANKS_MOST];

    ranks_run(3, 20, job, NULL, exits);
    for (int i = 0; i < 3; i++) {
        if (exits[i] == 77) {
            printf("skipped: %s needs the right to unshare\n", what);
            return;
        }
        if (!EXPECT(exits[i] == 0)) fprintf(stderr, "%s, rank %d: %d\n", what, i, exits[i]);
    }
}

/* ---- misuse ---------------------------------------------------------------------------------- */

static int forks(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 10000);
    lofi_task task = LOFI_TASK_INIT;
    lofi_request *request = NULL;
    int status = 0;

    ASSERT(lofi_post(comm, &task, NULL, NULL, &request) == LOFI_OK); /* the thread exists */
    ASSERT(lofi_request_wait(request, -1) == LOFI_OK);
    pid_t child = fork();
    if (child == 0) {
        EXPECT(lofi_barrier(comm) == LOFI_STATE);
        EXPECT_ERROR("forked child");
        EXPECT(lofi_post(comm, &task, NULL, NULL, NULL) == LOFI_STATE);
        lofi_comm_abort(comm); /* nothing, to the parent */
        lofi_comm_destroy(comm);
        _exit(test_failures != 0);
    }
    ASSERT(waitpid(child, &status, 0) == child && status == 0);
    for (int i = 0; i < 5; i++)
        EXPECT(lofi_barrier(comm) == LOFI_OK);
    lofi_request_destroy(request);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

static void note_status(void *ctx, lofi_status status, const char *error)
{
    lofi_status *at = ctx;
    if (status != LOFI_OK) EXPECT(error[0] != '\0');
    *at = status;
}

static int ends_with_posts(struct rank *rank)
{
    lofi_comm *comm = ranks_comm(rank, 10000);
    lofi_task task = LOFI_TASK_INIT;
    lofi_status seen[3] = {LOFI_IN_PROGRESS, LOFI_IN_PROGRESS, LOFI_IN_PROGRESS};
    lofi_request *last = NULL;

    task.timeout_ms = 300;
    if (rank->rank == 0) {
        for (int i = 0; i < 3; i++)
            ASSERT(lofi_post(comm, &task, note_status, &seen[i], i == 2 ? &last : NULL) == LOFI_OK);
        ranks_sleep(0.1); /* the first one runs, and waits for a rank that does not come */
        lofi_comm_destroy(comm);
        EXPECT(seen[0] == LOFI_TIMED_OUT);
        EXPECT(seen[1] == LOFI_STATE || seen[1] == LOFI_TIMED_OUT);
        EXPECT(seen[2] == seen[1]);
        EXPECT(lofi_request_wait(last, -1) == seen[2]);
        lofi_request_destroy(last);
        return test_failures != 0;
    }
    ranks_sleep(0.6);
    lofi_comm_destroy(comm);
    return test_failures != 0;
}

static void expect_refused(lofi_comm *comm, const lofi_task *task, const char *part)
{
    EXPECT(lofi_run(comm, task) == LOFI_INVALID);
    EXPECT_ERROR(part);
    EXPECT(lofi_post(comm, task, NULL, NULL, NULL) == LOFI_INVALID);
}

static void test_arguments(void)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;
    float data[4] = {0};
    lofi_task task = LOFI_TASK_INIT, given;

    EXPECT(lofi_comm_create(NULL, NULL, NULL, &comm) == LOFI_INVALID);
    EXPECT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    EXPECT_ERROR("shm, host, self or nccl");
    options.transport = "shm";
    EXPECT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    EXPECT_ERROR("allgather");
    options.transport = "host";
    EXPECT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    EXPECT_ERROR("all_gather");
    options.transport = "self";
    options.rank_count = 2;
    EXPECT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    options.rank = 2;
    EXPECT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    options.rank = 0;
    options.rank_count = 1;
    options.timeout_ms = 0;
    EXPECT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    options.timeout_ms = 1000;
    options.slot_bytes = 7;
    EXPECT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_INVALID);
    options.slot_bytes = 0;
    ASSERT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_OK);

    given = task;
    given.collective = LOFI_SEND;
    expect_refused(comm, &given, "not one of a communicator");
    task.collective = LOFI_ALL_REDUCE;
    task.dtype = LOFI_F32;
    task.count = 4;
    task.in = task.out = data;
    given = task;
    given.size = 0;
    expect_refused(comm, &given, "LOFI_TASK_INIT");
    given = task;
    given.in = NULL;
    expect_refused(comm, &given, "without input");
    given = task;
    given.out = (char *)data + 1;
    expect_refused(comm, &given, "not aligned");
    given = task;
    given.dtype = (lofi_dtype)99;
    expect_refused(comm, &given, "dtype 99");
    given = task;
    given.op = (lofi_op)99;
    expect_refused(comm, &given, "operation 99");
    given = task;
    given.op = LOFI_BOR;
    expect_refused(comm, &given, "BOR of float32");
    given = task;
    given.dtype = LOFI_I32;
    given.op = LOFI_AVG;
    expect_refused(comm, &given, "AVG of int32");
    given.op = LOFI_PREMUL_SUM;
    given.factor = 0.5;
    expect_refused(comm, &given, "whole");
    given = task;
    given.dtype = LOFI_BYTES;
    expect_refused(comm, &given, "bytes");
    given.dtype = LOFI_F8_E5M2;
    expect_refused(comm, &given, "nothing is computed");
    given = task;
    given.count = SIZE_MAX / 2;
    expect_refused(comm, &given, "address space");
    given = task;
    given.collective = LOFI_BROADCAST;
    given.root = 1;
    expect_refused(comm, &given, "root 1 among 1");
    given.root = 0;
    given.timeout_ms = -1;
    expect_refused(comm, &given, "timeout");
    EXPECT(lofi_run(comm, &task) == LOFI_OK); /* and none of that broke it */
    lofi_comm_abort(comm);
    EXPECT(lofi_run(comm, &task) == LOFI_PEER_LOST);
    lofi_comm_destroy(comm);
    lofi_comm_destroy(NULL);
    lofi_request_destroy(NULL);
}

/* Two runs of this program at once would count each other's files. */
static void wait_for_other_runs(void)
{
    const int folder = open("/dev/shm", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) EXPECT(flock(folder, LOCK_EX) == 0); /* held until the process ends */
}

int main(void)
{
    wait_for_other_runs();
    test_arguments();
    test_headers();
    for (int count = 2; count <= 4; count++)
        for (int i = 0; i < 3; i++)
            test_killed(count);
    EXPECT(ranks_all_passed(3, 30, stopped, NULL));
    EXPECT(ranks_all_passed(3, 30, departed, NULL));
    EXPECT(ranks_all_passed(2, 60, leaves_early, NULL));
    EXPECT(ranks_all_passed(3, 30, aborted, NULL));
    test_differences();
    EXPECT(ranks_all_passed(2, 20, gives_only, NULL));
    for (int i = 0; i < 60; i++)
        EXPECT(ranks_all_passed(2, 20, ends_at_once, NULL));
    EXPECT(ranks_all_passed(2, 20, together, NULL));
    EXPECT(ranks_all_passed(3, 20, without_memory, NULL));
    run_as_root("a full /dev/shm", without_room);
    run_as_root("another network", elsewhere);
    run_as_root("a /dev/shm of its own", apart);
    EXPECT(ranks_all_passed(2, 30, forks, NULL));
    EXPECT(ranks_all_passed(2, 30, ends_with_posts, NULL));
    EXPECT(left_in_dev_shm() == 0);
    return test_end();
}
