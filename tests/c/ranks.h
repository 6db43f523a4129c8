/* SPDX-License-Identifier: MIT */
/*
 * Ranks of a test: forks of this process, with an allgather over memory that they inherit.
 *
 *   static int job(struct rank *rank) { ... return test_failures != 0; }
 *   ranks_run(4, 30, job, NULL, exits);
 *
 * A rank's exit status is what the function returns, or 128 plus the signal that ended it.
 */
#ifndef LOFI_TESTS_RANKS_H
#define LOFI_TESTS_RANKS_H

#include "test.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RANKS_MOST 40
#define RANKS_RECORD 1024
#define RANKS_ROUNDS 64

struct ranks_board {
    _Atomic int come[RANKS_ROUNDS];
    char record[RANKS_ROUNDS][RANKS_MOST][RANKS_RECORD];
    _Atomic int flag[16]; /* for the test's own use */
    _Atomic int pid[RANKS_MOST];
};

struct rank {
    int rank, count;
    void *arg;
    struct ranks_board *board;
    int round;
    int timeout_ms; /* of its allgather */
};

static inline double ranks_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline void ranks_sleep(double seconds)
{
    struct timespec time = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&time, NULL);
}

/* A lofi_allgather_fn; `ctx` is the struct rank. */
static inline lofi_status ranks_allgather(void *ctx, const void *mine, size_t bytes, void *all)
{
    struct rank *rank = ctx;
    const int round = rank->round++;
    const double until = ranks_now() + 1e-3 * rank->timeout_ms;

    if (bytes > RANKS_RECORD || round >= RANKS_ROUNDS) return LOFI_SYSTEM;
    memcpy(rank->board->record[round][rank->rank], mine, bytes);
    atomic_fetch_add(&rank->board->come[round], 1);
    while (atomic_load(&rank->board->come[round]) < rank->count) {
        if (ranks_now() > until) {
            lofi_set_error("rank %d waited in vain for the others", rank->rank);
            return LOFI_TIMED_OUT;
        }
        ranks_sleep(100e-6);
    }
    for (int i = 0; i < rank->count; i++)
        memcpy((char *)all + (size_t)i * bytes, rank->board->record[round][i], bytes);
    return LOFI_OK;
}

/* Ends with the process that started it, and does not outlive `seconds`. */
static inline void ranks_child(struct rank *rank, int seconds, int (*job)(struct rank *))
{
    alarm((unsigned)seconds); /* SIGALRM kills: status 128 + 14 */
    test_checks = test_failures = 0;
    int status = job(rank);
    fflush(NULL);
    _exit(status);
}

static inline struct ranks_board *ranks_board(void)
{
    void *board = mmap(NULL, sizeof(struct ranks_board), PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT(board != MAP_FAILED);
    return board;
}

/* Runs `job` in `count` processes; `exits` gets the status of each. */
static inline void ranks_run(int count, int seconds, int (*job)(struct rank *), void *arg,
                             int *exits)
{
    struct ranks_board *board = ranks_board();
    pid_t pids[RANKS_MOST];

    ASSERT(count <= RANKS_MOST);
    fflush(NULL);
    for (int i = 0; i < count; i++) {
        pids[i] = fork();
        ASSERT(pids[i] >= 0);
        if (pids[i] == 0) {
            struct rank rank = {i, count, arg, board, 0, 20000};
            atomic_store(&board->pid[i], (int)getpid());
            ranks_child(&rank, seconds, job);
        }
    }
    for (int i = 0; i < count; i++) {
        int status = 0;
        ASSERT(waitpid(pids[i], &status, 0) == pids[i]);
        exits[i] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    munmap(board, sizeof *board);
}

/* All ranks ended with 0. */
static inline int ranks_all_passed(int count, int seconds, int (*job)(struct rank *), void *arg)
{
    int exits[RANKS_MOST], passed = 1;

    ranks_run(count, seconds, job, arg, exits);
    for (int i = 0; i < count; i++) {
        if (exits[i] == 0) continue;
        fprintf(stderr, "rank %d of %d ended with %d\n", i, count, exits[i]);
        passed = 0;
    }
    return passed;
}

/* The communicator of a rank's whole run, over shared memory. */
static inline lofi_comm *ranks_comm(struct rank *rank, int timeout_ms)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;

    options.transport = "shm";
    options.rank = rank->rank;
    options.rank_count = rank->count;
    options.timeout_ms = timeout_ms;
    options.name = "test";
    ASSERT(lofi_comm_create(&options, ranks_allgather, rank, &comm) == LOFI_OK);
    return comm;
}

#endif /* LOFI_TESTS_RANKS_H */
