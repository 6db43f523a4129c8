/* SPDX-License-Identifier: MIT */
/*
 * The contract between a communicator and what moves its bytes.
 *
 * A transport is this struct, filled in, and a line in comm/comm.c. The communicator checks a task
 * before it gets here, never runs two at a time, and keeps the order in which they were issued.
 */
#ifndef LOFI_TRANSPORT_TRANSPORT_H
#define LOFI_TRANSPORT_TRANSPORT_H

#include "lofi.h"

#define LOFI__NAME_BYTES 64

/* Who a communicator connects, for work and for errors. Outlives the transport's state. */
struct lofi__members {
    int rank, count;
    int *label;                  /* `count` numbers by which errors call the ranks */
    char name[LOFI__NAME_BYTES]; /* of the communicator; may be "" */
};

/* How a task is run. */
struct lofi__turn {
    int64_t deadline_ns; /* of CLOCK_MONOTONIC: by when it must be done */
    int in_background;   /* the caller computes meanwhile, and may need the core */
};

typedef lofi_status (*lofi__run_fn)(void *state, const lofi_task *task,
                                    const struct lofi__turn *turn);

struct lofi__transport {
    const char *name;
    /* Collective. `members` is borrowed until close. */
    lofi_status (*open)(const struct lofi__members *members, const lofi_comm_options *options,
                        lofi_allgather_fn allgather, void *ctx, void **state);
    /* By collective; NULL: not one of this transport's, LOFI_UNSUPPORTED. */
    lofi__run_fn run[LOFI_COLLECTIVE_COUNT];
    /* Optional. From any thread, also while a task runs: makes it and all others fail soon. */
    void (*abort)(void *state);
    /* Not collective. `forked`: in a child of the process that opened it, whose peers must not
     * notice. */
    void (*close)(void *state, int forked);
};

extern const struct lofi__transport lofi__transport_self;
extern const struct lofi__transport lofi__transport_shm;
extern const struct lofi__transport lofi__transport_host;

/* ---- what every transport does with a task ------------------------------------------------- */

static inline size_t lofi__smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t lofi__slot_bytes(const lofi_task *task)
{
    return task->count * lofi_dtype_bytes(task->dtype);
}

/* The slot that this rank gives to `rank`, or gets from it, of several. */
static inline const char *lofi__in_slot(const lofi_task *task, int rank)
{
    if (task->in_list != NULL) return task->in_list[rank];
    return (const char *)task->in + (size_t)rank * lofi__slot_bytes(task);
}

static inline char *lofi__out_slot(const lofi_task *task, int rank)
{
    if (task->out_list != NULL) return task->out_list[rank];
    return (char *)task->out + (size_t)rank * lofi__slot_bytes(task);
}

#endif /* LOFI_TRANSPORT_TRANSPORT_H */
