/* SPDX-License-Identifier: MIT */
/* Communicators: ranks that run collectives together, now or posted for later. */
#ifndef LOFI_COMM_H
#define LOFI_COMM_H

#include "lofi/base.h"
#include "lofi/collective.h"
#include "lofi/values.h"

LOFI__DECLARATIONS_BEGIN

/*
 * n ranks that run collectives together. What moves the bytes is one of four transports:
 *   shm    memory that the processes of one machine share
 *   host   functions of the caller, over MPI for instance
 *   self   for one rank alone
 *   nccl   NCCL 2.18 or newer, between GPUs
 * On the first three a collective gives the same bits.
 *
 * nccl is for memory of a CUDA device: buffers lie there (others are LOFI_INVALID), and sums are
 * NCCL's, see below. libcuda.so.1 and libnccl.so.2 are loaded when the first such communicator is
 * made: LOFI_UNSUPPORTED, on all ranks, if one of them lacks a library or a device. A collective
 * begins when what was enqueued on `stream` of the options before it was issued is done, and runs
 * on a stream of the communicator's own; when lofi_run returns, or a posted one is done, so is the
 * work on the device, and any stream sees the result. It is given up at its deadline, and after an
 * error, by ncclCommAbort: LOFI_TIMED_OUT, LOFI_PEER_LOST for what NCCL calls a remote
 * error, LOFI_SYSTEM for all others, with NCCL's words. Other ranks learn of it from NCCL, or by
 * their own deadlines.
 *
 * Collectives of a communicator run one at a time, in the order in which they are issued; all
 * ranks issue the same ones in the same order. Any thread may issue.
 *
 * After a collective has failed (a rank is lost, late, or in another collective) its output is
 * undefined, the communicator is broken on all ranks (host: on those that saw it), and every later
 * call on it fails at once with the first cause: destroy it. A task that is refused (LOFI_INVALID,
 * LOFI_UNSUPPORTED) breaks nothing.
 *
 * In a child made by fork() a communicator of the parent can only be destroyed, which leaves the
 * parent's alone; all else is LOFI_STATE.
 */
typedef struct lofi_comm lofi_comm;

/* An embedding program supplies these for the transport "host": they move bytes, liblofi computes
 * the reductions. Each function blocks until this rank's part is done, has a deadline of its own,
 * gets buffers that do not overlap, and returns a status; lofi_set_error may hold the reason. They
 * run on the thread that waits for a collective, or, posted, on the communicator's thread; never
 * two at once. */
typedef struct lofi_host_functions {
    size_t size;
    /* Often the same function as the one that gathers the topology. */
    lofi_allgather_fn all_gather;
    /* Piece j of `in` (n pieces of `bytes` bytes) goes to rank j, piece j of `out` comes from it.
     * Optional: by default through all_gather, with n times the traffic. */
    lofi_status (*all_to_all)(void *ctx, const void *in, size_t bytes, void *out);
    /* Optional: by default through all_gather. */
    lofi_status (*broadcast)(void *ctx, void *data, size_t bytes, int root);
    void *ctx; /* borrowed until the communicator is destroyed */
} lofi_host_functions;
#define LOFI_HOST_FUNCTIONS_INIT                                                                   \
    {                                                                                              \
        sizeof(lofi_host_functions), NULL, NULL, NULL, NULL                                        \
    }

typedef struct lofi_comm_options {
    size_t size;
    const char *transport; /* "shm", "host", "self" or "nccl" */
    int rank;              /* 0 ... rank_count - 1 */
    int rank_count;        /* n >= 1 */
    int timeout_ms;        /* that a collective may take; > 0 */
    const char *name;      /* may be NULL. Appears in errors: "node 2". At most 63 bytes. */
    const int *labels;     /* may be NULL. rank_count numbers by which errors call the ranks: those
                              of the world. Borrowed during the call. */
    size_t slot_bytes;     /* shm: size of one of the two slots of a rank, 4096 ... 2^30, rounded up
                              to 128 bytes for each rank; 0: chosen */
    const lofi_host_functions *host; /* host: copied, but for its ctx */
    /* All that follows is nccl's. */
    int device;        /* CUDA's number of it; -1: that of the thread's context, or else 0 */
    void *stream;      /* a CUstream or cudaStream_t of the caller's, on this device; NULL: the
                          default one. Borrowed until the communicator is destroyed */
    lofi_comm *parent; /* NULL, or a communicator of more ranks to make this one out of. Borrowed
                          during the call */
    int color;         /* read with a parent: >= 0, the same on the ranks that stay together */
} lofi_comm_options;
#define LOFI_COMM_OPTIONS_INIT                                                                     \
    {                                                                                              \
        sizeof(lofi_comm_options), NULL, 0, 1, 30 * 60 * 1000, NULL, NULL, 0, NULL, -1, NULL,      \
            NULL, 0                                                                                \
    }

/*
 * Collective: all ranks call it. shm calls `allgather` up to five times, and needs nothing else to
 * find the others, nccl once if it has no parent; else it is not called, and may be NULL.
 *
 * shm: LOFI_UNSUPPORTED when the ranks do not share a machine (its boot, and its network, process
 * and IPC namespaces), LOFI_SYSTEM when its memory can't be made or mapped (in a container with
 * little /dev/shm and a closed /proc, say), LOFI_ABI when they run different releases; each with
 * the same sentence on every rank. The memory, 2 * slot_bytes for each rank, has no name any more
 * when the call returns, so nothing is left behind however the processes end.
 *
 * nccl: has to be done in timeout_ms. With a parent, all ranks of the parent make a communicator at
 * the same time, each its own, and nothing else runs on the parent meanwhile: `color` says who
 * stays together, `rank` in which order (ncclCommSplit). Each has connections and buffers of its
 * own: one that is aborted leaves the parent and the others alone.
 *
 * LOFI_INVALID names the option that is wrong; LOFI_NO_MEMORY, and the status of `allgather` (a
 * LOFI_SYSTEM of which becomes LOFI_PEER_LOST), are this rank's own.
 */
lofi_status lofi_comm_create(const lofi_comm_options *options, lofi_allgather_fn allgather,
                             void *ctx, lofi_comm **out);

/*
 * A communicator for ranks of which it is not known whether they share a machine: shm, or self for
 * one rank. options->transport is not read. Collective; all ranks get the same. Where memory can't
 * be shared, `*out` is NULL and the status LOFI_OK: the caller moves the bytes by `otherwise`
 * ("gloo"). The log says so: as information if the ranks are on different machines, else, once a
 * process and from the communicator's first rank, as a warning. Other errors are those of
 * lofi_comm_create.
 */
lofi_status lofi_comm_create_local(const lofi_comm_options *options, lofi_allgather_fn allgather,
                                   void *ctx, const char *otherwise, lofi_comm **out);

/* Not collective. Posted collectives that have not run yet fail first; it waits for the one that
 * is running. Other ranks that still wait for this one get LOFI_PEER_LOST. No other thread may be
 * inside a call on the communicator, waits for its requests included. (nccl: waits up to 5 s for
 * NCCL to end what it has, and aborts it then. The others learn of it as said above.) */
void lofi_comm_destroy(lofi_comm *comm);

int lofi_comm_rank(const lofi_comm *comm);
int lofi_comm_rank_count(const lofi_comm *comm);
const char *lofi_comm_transport(const lofi_comm *comm); /* static storage */

/* Breaks the communicator on all ranks: what runs and what waits fails with LOFI_PEER_LOST, which
 * names this rank. From any thread. (host: what runs is not interrupted. nccl: other ranks learn of
 * it from NCCL, or by their deadlines, and not which rank it was.) */
void lofi_comm_abort(lofi_comm *comm);

/* Called when a collective begins to run, on the thread that runs it: that of lofi_run, or of
 * lofi_done_fn below. It must not issue, wait, nor destroy the communicator. */
typedef void (*lofi_begun_fn)(void *ctx);

/*
 * One collective. `count` is the number of elements in one slot: what a rank gives and gets in
 * all_reduce, reduce and broadcast, what a rank gives to all_gather and gather, and what a rank
 * gives to each rank in reduce_scatter and all_to_all.
 *
 * `in` and `out` hold one slot, or n slots in rank order where a rank has one for each; these may
 * be given as n pointers in `in_list`, `out_list` instead, and then `in` or `out` is not read.
 * A rank that gives or gets nothing (reduce and gather outside of the root, the input of
 * broadcast: the data is `out`, at the root too) may leave it NULL. Buffers are aligned to their
 * elements. `out` may be `in`; where one holds n slots, the other may be this rank's slot of it.
 *
 * Reductions are taken in rank order, by type:
 *   float64, float32   each product and sum rounded to the type
 *   float16, bfloat16  products and sums in float32, rounded once at the end
 *   integers           in two's complement, without overflow
 *   SUM  x0 + x1 + ...      PREMUL_SUM  f*x0 + f*x1 + ...      PRODUCT  x0 * x1 * ...
 *   AVG  (x0 + x1 + ...)/n, floats only              BAND, BOR, BXOR  integers only
 *   MIN  x < m ? x : m      MAX  m < x ? x : m, m being the result so far: a NaN of the first
 *                           rank stays, one of a later rank is passed over (as in gloo)
 * f is `factor` converted to float32 or float64 as the sums are, or to the integer (it must be
 * whole). The result has the same bits on every rank, in every run, and on every transport and
 * CPU; which NaN a NaN is, is not defined. The default floating-point environment is assumed.
 *
 * nccl is the exception: order and rounding are NCCL's, f is converted to the data's type, what MIN
 * and MAX make of NaN is NCCL's too, and BAND, BOR and BXOR are LOFI_UNSUPPORTED. So is all_to_all
 * with a slot for another rank in place of the one from it.
 */
typedef struct lofi_task {
    size_t size;
    lofi_collective collective; /* those above, and LOFI_BARRIER, which moves no data */
    lofi_dtype dtype;
    lofi_op op;     /* read for reductions only */
    double factor;  /* read for LOFI_PREMUL_SUM only */
    int root;       /* read for reduce, broadcast, gather */
    int timeout_ms; /* from the moment it runs; 0: the communicator's */
    size_t count;
    const void *in;
    void *out;
    const void *const *in_list;
    void *const *out_list;
    lofi_begun_fn begun; /* NULL: nobody wants to know. Not called if the communicator is broken */
    void *begun_ctx;     /* borrowed until then, or until the collective is done */
} lofi_task;
#define LOFI_TASK_INIT                                                                             \
    {                                                                                              \
        sizeof(lofi_task), LOFI_BARRIER, LOFI_BYTES, LOFI_SUM, 1.0, 0, 0, 0, NULL, NULL, NULL,     \
            NULL, NULL, NULL                                                                       \
    }

/*
 * Runs one collective and blocks until this rank's part is done, after all that was posted.
 * LOFI_INVALID for a task that is wrong in itself. LOFI_PEER_LOST names the rank whose process is
 * gone, LOFI_TIMED_OUT the one that did not come in time, LOFI_STATE one that is in another
 * collective, or in the same one with another size, dtype, operation or root. A rank that only
 * gives (the root of a broadcast) does not wait for the others: it learns of such things from its
 * next collective. (LOFI_STATE is shm's; self has no other ranks, and host can't tell.)
 */
lofi_status lofi_run(lofi_comm *comm, const lofi_task *task);

/* The same for the most common ones, in the communicator's time. */
lofi_status lofi_all_reduce(lofi_comm *comm, const void *in, void *out, size_t count,
                            lofi_dtype dtype, lofi_op op);
lofi_status lofi_broadcast(lofi_comm *comm, void *data, size_t bytes, int root);
lofi_status lofi_all_gather(lofi_comm *comm, const void *in, void *out, size_t bytes);
lofi_status lofi_reduce_scatter(lofi_comm *comm, const void *in, void *out, size_t count,
                                lofi_dtype dtype, lofi_op op);
lofi_status lofi_barrier(lofi_comm *comm);

/* A posted collective. */
typedef struct lofi_request lofi_request;

/* Called once, when the collective is done: `error` is "" or the sentence that belongs to the
 * status, borrowed. On the communicator's thread, or on one that waits for a collective of the
 * same communicator. It may post; it must not wait, nor destroy the communicator. */
typedef void (*lofi_done_fn)(void *ctx, lofi_status status, const char *error);

/* Queues one collective and returns. The task is copied, lists included; the buffers are
 * borrowed until it is done. The communicator's thread starts with the first post. `done` may be
 * NULL. `out` may be NULL if nobody will ask. */
lofi_status lofi_post(lofi_comm *comm, const lofi_task *task, lofi_done_fn done, void *ctx,
                      lofi_request **out);

/* LOFI_IN_PROGRESS, or the status of the collective (with its sentence as the last error). */
lofi_status lofi_request_test(lofi_request *request);
/* Waits up to `timeout_ms`, < 0: until it is done, which the deadline of the collective bounds.
 * Without a timeout the calling thread may run what is queued itself. LOFI_IN_PROGRESS: not done
 * after that time. */
lofi_status lofi_request_wait(lofi_request *request, int timeout_ms);
/* Also before it is done, and after its communicator is destroyed. */
void lofi_request_destroy(lofi_request *request);

LOFI__DECLARATIONS_END

#endif /* LOFI_COMM_H */
