/* SPDX-License-Identifier: MIT */
/* Collectives as a caller issues them: run now, or posted, asked for and waited for later. */
#define _GNU_SOURCE
#include "comm/queue.h"
#include "core/mem.h"
#include "transport/clock.h"

#include <string.h>

/* Lists belong to the caller only during the call. */
static lofi_status keep_lists(struct lofi_request *request, int count)
{
    const size_t bytes = (size_t)count * sizeof(void *);
    lofi_task *task = &request->task;

    if (task->in_list == NULL && task->out_list == NULL) return LOFI_OK;
    request->list = lofi__mem_create(2 * (size_t)count, sizeof(void *));
    if (request->list == NULL) return LOFI_NO_MEMORY;
    if (task->in_list != NULL) {
        memcpy(request->list, task->in_list, bytes);
        task->in_list = (const void *const *)request->list;
    }
    if (task->out_list != NULL) {
        memcpy(request->list + count, task->out_list, bytes);
        task->out_list = request->list + count;
    }
    return LOFI_OK;
}

/* Returns the status, and makes its sentence the calling thread's last error. */
static lofi_status outcome(const struct lofi_request *request)
{
    if (request->status != LOFI_OK) lofi_set_error("%s", lofi__request_error(request));
    return request->status;
}

static lofi_status issue(lofi_comm *comm, struct lofi_request *request)
{
    if (comm->transport->issue == NULL) return LOFI_OK;
    return comm->transport->issue(comm->state, &request->task, &request->ticket);
}

/* All but the task, which is filled in by its check: to clear it too would take longer than the rest
 * of a small collective's way through here. */
static void begin(struct lofi_request *request)
{
    request->comm = NULL;
    request->ticket = NULL;
    request->list = NULL;
    request->done = NULL;
    request->ctx = NULL;
    request->next = NULL;
    request->error = NULL;
    atomic_init(&request->finished, 0);
    atomic_init(&request->references, 1);
}

lofi_status lofi_run(lofi_comm *comm, const lofi_task *task)
{
    struct lofi_request request; /* waits here until it is finished, so it needs no allocation */

    begin(&request);
    lofi_status st = lofi__comm_check_process(comm);
    if (st == LOFI_OK) st = lofi__task_check(comm, task, &request.task);
    if (st == LOFI_OK) st = issue(comm, &request);
    if (st != LOFI_OK) return st;
    lofi__queue_run(comm, &request);
    st = outcome(&request);
    if (request.error != NULL) lofi__mem_destroy(request.error);
    return st;
}

lofi_status lofi_post(lofi_comm *comm, const lofi_task *task, lofi_done_fn done, void *ctx,
                      lofi_request **out)
{
    struct lofi_request *request = NULL;

    lofi_status st = lofi__comm_check_process(comm);
    if (st != LOFI_OK) return st;
    request = lofi__mem_create(1, sizeof *request);
    if (request == NULL) return LOFI_NO_MEMORY;
    atomic_init(&request->references, 1);
    st = lofi__task_check(comm, task, &request->task);
    if (st == LOFI_OK) st = keep_lists(request, comm->members.count);
    if (st == LOFI_OK) st = issue(comm, request);
    if (st != LOFI_OK) {
        lofi__request_release(request);
        return st;
    }
    request->comm = comm;
    request->done = done;
    request->ctx = ctx;
    if (out != NULL) atomic_store(&request->references, 2);
    st = lofi__queue_post(comm, request);
    if (st == LOFI_OK) {
        if (out != NULL) *out = request;
        return LOFI_OK;
    }
    lofi__request_retire(comm, request);
    atomic_store(&request->references, 1);
    lofi__request_release(request);
    return st;
}

lofi_status lofi_request_test(lofi_request *request)
{
    return lofi__request_is_finished(request) ? outcome(request) : LOFI_IN_PROGRESS;
}

static struct timespec after_ms(int timeout_ms)
{
    int64_t ns = lofi__after_ms(timeout_ms);
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

lofi_status lofi_request_wait(lofi_request *request, int timeout_ms)
{
    /* A finished one no longer needs its communicator, which may be gone. */
    if (lofi__request_is_finished(request)) return outcome(request);
    lofi_comm *comm = request->comm;
    lofi_status st = lofi__comm_check_process(comm);
    if (st != LOFI_OK) return st;
    const struct timespec limit = after_ms(timeout_ms);
    lofi__queue_wait(comm, request, timeout_ms < 0 ? NULL : &limit);
    return lofi_request_test(request);
}

void lofi_request_destroy(lofi_request *request)
{
    if (request != NULL) lofi__request_release(request);
}
