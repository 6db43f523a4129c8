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

/* The ranks that a communicator connects. It outlives the transport's state. */
struct lofi__members {
    int rank, count;
    int *label;                  /* `count` numbers by which errors call the ranks */
    char name[LOFI__NAME_BYTES]; /* of the communicator; may be "" */
};

/* How a task is run. */
struct lofi__turn {
    int in_background; /* the caller computes meanwhile, and may need the core */
    void *ticket;      /* of issue; NULL without one */
};

/* An exchange works through these on the memory that a transport moves. All but `allocate`,
 * `release` and `wait` may return before they are done: they and collectives of the same state,
 * once issued, run in order. Errors are sentences. */
struct lofi__memory {
    const char *name; /* "device memory" */
    /* LOFI_INVALID if `data` is no such memory. */
    lofi_status (*check)(void *state, const void *data);
    /* The memory is not zeroed. */
    lofi_status (*allocate)(void *state, size_t bytes, void **out);
    void (*release)(void *state, void *memory); /* NULL is a no-op */
    lofi_status (*copy)(void *state, void *to, const void *from, size_t bytes);
    lofi_status (*zero)(void *state, void *to, size_t bytes);
    /* Takes the mean as lofi_mean does; the inputs lie at equal distances. */
    lofi_status (*mean)(void *state, lofi_dtype dtype, void *out, const void *const *in,
                        const double *weights, int inputs, size_t count);
    /* Waits until all of the above, and all that the caller had begun before, is done. */
    lofi_status (*wait)(void *state);
};

typedef lofi_status (*lofi__run_fn)(void *state, const lofi_task *task,
                                    const struct lofi__turn *turn);

struct lofi__transport {
    const char *name;
    const struct lofi__memory *memory; /* NULL: the process's own */
    /* Collective. `members` is borrowed until close. `parent`: the state of options->parent. */
    lofi_status (*open)(const struct lofi__members *members, const lofi_comm_options *options,
                        void *parent, lofi_allgather_fn allgather, void *ctx, void **state);
    /* Optional, both or none. issue: on the thread that issues a checked task, before it is queued.
     * Refuses what this transport alone refuses, which breaks nothing, and may keep what it has to
     * remember of this moment. retire: takes that back, on any thread, when the task has run, or
     * will not. */
    lofi_status (*issue)(void *state, const lofi_task *task, void **ticket);
    void (*retire)(void *state, void *ticket);
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
extern const struct lofi__transport lofi__transport_nccl;

/* ---- what every transport does with a task --------------------------------------------------- */

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
