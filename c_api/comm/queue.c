/* SPDX-License-Identifier: MIT */
/*
 * The queue of a communicator: one collective at a time, in the order of their issue, on whichever
 * thread is there to run it.
 *
 * A thread that waits runs the queue itself if nobody else does: a blocking call on an idle
 * communicator switches to no other thread. What is posted is run by the communicator's own
 * thread, started by the first post, so that it goes on while the poster computes.
 */
#define _GNU_SOURCE
#include "comm/queue.h"
#include "core/mem.h"
#include "core/thread.h"
#include "transport/clock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- a request ------------------------------------------------------------------------------- */

void lofi__request_release(struct lofi_request *request)
{
    if (atomic_fetch_sub(&request->references, 1) != 1) return;
    lofi__mem_destroy(request->error);
    lofi__mem_destroy(request->list);
    lofi__mem_destroy(request);
}

int lofi__request_is_finished(const struct lofi_request *request)
{
    return atomic_load_explicit(&request->finished, memory_order_acquire);
}

const char *lofi__request_error(const struct lofi_request *request)
{
    return request->error != NULL ? request->error : lofi_status_text(request->status);
}

static void finish(struct lofi_request *request, lofi_status status)
{
    request->status = status;
    if (status != LOFI_OK) {
        const size_t bytes = strlen(lofi_last_error()) + 1;
        request->error = lofi__mem_create(bytes, 1);
        if (request->error != NULL) memcpy(request->error, lofi_last_error(), bytes);
    }
    atomic_store_explicit(&request->finished, 1, memory_order_release);
}

void lofi__request_retire(lofi_comm *comm, struct lofi_request *request)
{
    if (request->ticket != NULL) comm->transport->retire(comm->state, request->ticket);
    request->ticket = NULL;
}

/* ---- running (the lock is held, but while a collective or a callback runs) ------------------- */

static void append(lofi_comm *comm, struct lofi_request *request)
{
    if (comm->last != NULL)
        comm->last->next = request;
    else
        comm->first = request;
    comm->last = request;
}

static struct lofi_request *take_first(lofi_comm *comm)
{
    struct lofi_request *request = comm->first;
    comm->first = request->next;
    if (comm->first == NULL) comm->last = NULL;
    return request;
}

static lofi_status broken(const lofi_comm *comm)
{
    if (comm->broken != LOFI_OK) lofi_set_error("%s", comm->why);
    return comm->broken;
}

static lofi_status run_task(const lofi_comm *comm, const struct lofi_request *request,
                            int in_background)
{
    const lofi_task *task = &request->task;
    const struct lofi__turn turn = {.in_background = in_background, .ticket = request->ticket};
    if (task->begun != NULL) task->begun(task->begun_ctx);
    return comm->transport->run[task->collective](comm->state, task, &turn);
}

static void remember_failure(lofi_comm *comm, lofi_status st)
{
    pthread_mutex_lock(&comm->lock);
    if (comm->broken == LOFI_OK) {
        comm->broken = st;
        snprintf(comm->why, sizeof comm->why, "%.*s (the communicator is broken since)",
                 LOFI__ERROR_BYTES - 64, lofi_last_error());
    }
    pthread_mutex_unlock(&comm->lock);
}

static void run_first(lofi_comm *comm, int in_background)
{
    struct lofi_request *request = take_first(comm);
    lofi_status st = broken(comm);

    comm->running = 1;
    pthread_mutex_unlock(&comm->lock);
    if (st == LOFI_OK) st = run_task(comm, request, in_background);
    if (st != LOFI_OK) remember_failure(comm, st);
    lofi__request_retire(comm, request);

    /* Finished before the callback, so that whoever is called by it may ask. After this line a
     * request of lofi_run is gone; it has no callback. */
    lofi_done_fn done = request->done;
    void *ctx = request->ctx;
    const int posted = request->comm != NULL;
    finish(request, st);
    if (done != NULL) done(ctx, st, st == LOFI_OK ? "" : lofi__request_error(request));
    if (posted) lofi__request_release(request);
    pthread_mutex_lock(&comm->lock);
    comm->running = 0;
    pthread_cond_broadcast(&comm->changed);
    if (comm->first != NULL && comm->has_thread) pthread_cond_signal(&comm->has_work);
}

static void *run_thread(void *argument)
{
    lofi_comm *comm = argument;

    pthread_mutex_lock(&comm->lock);
    while (!comm->ending) {
        if (comm->first != NULL && !comm->running)
            run_first(comm, 1);
        else
            pthread_cond_wait(&comm->has_work, &comm->lock);
    }
    pthread_mutex_unlock(&comm->lock);
    return NULL;
}

static lofi_status start_thread(lofi_comm *comm)
{
    if (comm->has_thread) return LOFI_OK;
    int error = lofi__thread_create(&comm->thread, run_thread, comm);
    if (error != 0) {
        lofi_set_error("the thread of a communicator can't start: %s", strerror(error));
        return LOFI_SYSTEM;
    }
    pthread_setname_np(comm->thread, "lofi");
    comm->has_thread = 1;
    return LOFI_OK;
}

/* ---- the queue's life ------------------------------------------------------------------------ */

lofi_status lofi__queue_create(lofi_comm *comm)
{
    pthread_condattr_t monotonic;

    int error = pthread_condattr_init(&monotonic);
    if (error == 0) error = pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    if (error == 0) error = pthread_mutex_init(&comm->lock, NULL);
    if (error == 0) error = pthread_cond_init(&comm->has_work, &monotonic);
    if (error == 0) error = pthread_cond_init(&comm->changed, &monotonic);
    if (error == 0) return LOFI_OK;
    lofi_set_error("a communicator's lock can't be made: %s", strerror(error));
    return LOFI_SYSTEM;
}

void lofi__queue_destroy(lofi_comm *comm)
{
    pthread_mutex_lock(&comm->lock);
    comm->ending = 1;
    if (comm->broken == LOFI_OK) {
        comm->broken = LOFI_STATE;
        snprintf(comm->why, sizeof comm->why, "the communicator was destroyed before this one ran");
    }
    while (comm->first != NULL || comm->running) {
        if (comm->running)
            pthread_cond_wait(&comm->changed, &comm->lock);
        else
            run_first(comm, 0); /* the communicator is broken: the request fails */
    }
    pthread_cond_signal(&comm->has_work);
    pthread_mutex_unlock(&comm->lock);
    if (comm->has_thread) pthread_join(comm->thread, NULL);
    pthread_cond_destroy(&comm->changed);
    pthread_cond_destroy(&comm->has_work);
    pthread_mutex_destroy(&comm->lock);
}

/* ---- waiting and adding ---------------------------------------------------------------------- */

/* The lock is held. Returns when the request is finished, or at `limit` (NULL: never). */
static void wait_locked(lofi_comm *comm, const struct lofi_request *request,
                        const struct timespec *limit)
{
    while (!lofi__request_is_finished(request)) {
        if (limit == NULL && comm->first != NULL && !comm->running)
            run_first(comm, 0);
        else if (limit == NULL)
            pthread_cond_wait(&comm->changed, &comm->lock);
        else if (pthread_cond_timedwait(&comm->changed, &comm->lock, limit) == ETIMEDOUT)
            return;
    }
}

void lofi__queue_wait(lofi_comm *comm, const struct lofi_request *request,
                      const struct timespec *limit)
{
    pthread_mutex_lock(&comm->lock);
    wait_locked(comm, request, limit);
    pthread_mutex_unlock(&comm->lock);
}

void lofi__queue_run(lofi_comm *comm, struct lofi_request *request)
{
    pthread_mutex_lock(&comm->lock);
    append(comm, request);
    wait_locked(comm, request, NULL);
    pthread_mutex_unlock(&comm->lock);
}

lofi_status lofi__queue_post(lofi_comm *comm, struct lofi_request *request)
{
    pthread_mutex_lock(&comm->lock);
    lofi_status st = start_thread(comm);
    if (st == LOFI_OK) {
        append(comm, request);
        if (!comm->running) pthread_cond_signal(&comm->has_work);
    }
    pthread_mutex_unlock(&comm->lock);
    return st;
}
