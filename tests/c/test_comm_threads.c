/* SPDX-License-Identifier: MIT */
/*
 * For ThreadSanitizer, which sees threads and not processes: ranks as threads over one mapping of
 * the shared memory, so that a read of a slot that nothing orders after its write is reported; and
 * many threads on one communicator.
 */
#define _GNU_SOURCE
#include "ranks.h"
#include "transport/clock.h"
#include "transport/shm_wait.h"

#include <pthread.h>

#define RANKS 3
#define COUNT 3000
#define ROUNDS 40
#define FIRST_STAGE 0xffffffa0u /* the count of stages wraps around on the way */

struct seat {
    struct lofi__shm shm;
    struct lofi__members members;
    struct lofi__shm_peer peer[RANKS];
    const void *operand[RANKS];
    int crowded;
    unsigned long failures;
};

static lofi_status run(struct seat *seat, lofi_task *task)
{
    const struct lofi__turn turn = {seat->crowded, NULL};
    task->timeout_ms = 20000;
    return lofi__transport_shm.run[task->collective](&seat->shm, task, &turn);
}

static float value(int rank, int round, size_t i)
{
    return (float)((rank + 1) * (round + 1) % 17 + (int)(i % 5));
}

static void *sit(void *argument)
{
    struct seat *seat = argument;
    static _Thread_local float data[COUNT], all[RANKS * COUNT];
    const int rank = seat->members.rank;

    for (int round = 0; round < ROUNDS; round++) {
        lofi_task task = LOFI_TASK_INIT;
        task.dtype = LOFI_F32;
        task.count = COUNT - (size_t)round;
        task.root = round % RANKS;
        task.in = task.out = data;
        for (size_t i = 0; i < task.count; i++)
            data[i] = value(rank, round, i);
        task.collective = LOFI_ALL_REDUCE;
        seat->failures += run(seat, &task) != LOFI_OK;
        for (size_t i = 0; i < task.count; i++)
            seat->failures +=
                data[i] != value(0, round, i) + value(1, round, i) + value(2, round, i);
        task.collective = LOFI_BROADCAST;
        data[0] = (float)rank;
        seat->failures += run(seat, &task) != LOFI_OK || data[0] != (float)task.root;
        task.collective = LOFI_ALL_GATHER;
        data[0] = (float)rank;
        task.out = all;
        seat->failures += run(seat, &task) != LOFI_OK;
        for (int other = 0; other < RANKS; other++)
            seat->failures += all[(size_t)other * task.count] != (float)other;
        task.collective = LOFI_GATHER;
        seat->failures += run(seat, &task) != LOFI_OK;
        task.count /= RANKS;
        task.in = all;
        task.out = data;
        task.collective = LOFI_REDUCE_SCATTER;
        seat->failures += run(seat, &task) != LOFI_OK;
        task.collective = LOFI_BARRIER;
        seat->failures += run(seat, &task) != LOFI_OK;
    }
    return NULL;
}

static void test_ranks(int crowded)
{
    static struct seat seats[RANKS];
    static int labels[RANKS] = {0, 1, 2};
    struct lofi__shm_segment segment;
    pthread_t threads[RANKS];

    ASSERT(lofi__segment_create(&segment, LOFI__SHM_MEMFD, RANKS, 4096) == LOFI_OK);
    for (int rank = 0; rank < RANKS; rank++) {
        struct seat *seat = &seats[rank];
        memset(seat, 0, sizeof *seat);
        seat->members = (struct lofi__members){rank, RANKS, labels, "threads"};
        seat->crowded = crowded;
        seat->shm = (struct lofi__shm){.members = &seat->members,
                                       .segment = segment,
                                       .peer = seat->peer,
                                       .stage = FIRST_STAGE,
                                       .call_number = FIRST_STAGE,
                                       .crowded = crowded,
                                       .operand = seat->operand};
        for (uint32_t stage = FIRST_STAGE - 1; stage != FIRST_STAGE + 1; stage++)
            atomic_store(&lofi__segment_stage(&segment, rank, stage)->number, stage);
        for (int i = 0; i < RANKS; i++)
            seat->peer[i] = (struct lofi__shm_peer){(int)getpid(), -1};
    }
    for (int rank = 0; rank < RANKS; rank++)
        ASSERT(pthread_create(&threads[rank], NULL, sit, &seats[rank]) == 0);
    for (int rank = 0; rank < RANKS; rank++) {
        pthread_join(threads[rank], NULL);
        EXPECT(seats[rank].failures == 0);
    }
    lofi__segment_close(&segment);
}

/* ---- one communicator, many threads ---------------------------------------------------------- */

struct poster {
    lofi_comm *comm;
    _Atomic int *done;
    unsigned long failures;
};

static void note(void *ctx, lofi_status status, const char *error)
{
    (void)error;
    if (status == LOFI_OK) atomic_fetch_add((_Atomic int *)ctx, 1);
}

static void *post(void *argument)
{
    struct poster *poster = argument;

    for (int i = 0; i < 300; i++) {
        lofi_task task = LOFI_TASK_INIT;
        lofi_request *request = NULL;
        float in[16], out[16];

        for (int k = 0; k < 16; k++)
            in[k] = (float)(i + k);
        task.collective = LOFI_ALL_REDUCE;
        task.dtype = LOFI_F32;
        task.op = LOFI_PREMUL_SUM;
        task.factor = 2;
        task.count = 16;
        task.in = in;
        task.out = out;
        if (i % 3 == 0) {
            poster->failures += lofi_run(poster->comm, &task) != LOFI_OK;
        } else {
            poster->failures += lofi_post(poster->comm, &task, note,
                                          (void *)(uintptr_t)poster->done, &request) != LOFI_OK;
            while (i % 3 == 1 && lofi_request_wait(request, 1) == LOFI_IN_PROGRESS)
                ;
            poster->failures += lofi_request_wait(request, -1) != LOFI_OK;
            lofi_request_destroy(request);
        }
        poster->failures += out[15] != 2 * (float)(i + 15);
    }
    return NULL;
}

static void test_posters(void)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;
    struct poster posters[4];
    pthread_t threads[4];
    _Atomic int done = 0;

    options.transport = "self";
    ASSERT(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_OK);
    for (int i = 0; i < 4; i++) {
        posters[i] = (struct poster){comm, &done, 0};
        ASSERT(pthread_create(&threads[i], NULL, post, &posters[i]) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        EXPECT(posters[i].failures == 0);
    }
    lofi_comm_destroy(comm); /* runs the callbacks that are not over yet */
    EXPECT(atomic_load(&done) == 4 * 200);
}

int main(void)
{
    test_ranks(0);
    test_ranks(1);
    test_posters();
    return test_end();
}
