/* SPDX-License-Identifier: MIT */
/*
 * The state of the transport nccl, for its files: nccl_comm.c makes, watches and ends a
 * communicator of NCCL, nccl.c runs collectives on it, nccl_memory.c serves the average.
 *
 * The communicator of NCCL is a non-blocking one: each of NCCL's functions returns soon, and says
 * later, when it is asked, whether it has done what it was told. So `lock` may be held while NCCL
 * is called, and abort, from any thread, finds nobody inside.
 */
#ifndef LOFI_TRANSPORT_NCCL_COMM_H
#define LOFI_TRANSPORT_NCCL_COMM_H

#include "transport/nccl_library.h"
#include "transport/transport.h"

#include <pthread.h>

/* Events that are kept for the next tasks. */
#define LOFI__NCCL_SPARE_EVENTS 16

struct lofi__nccl {
    const struct lofi__members *members;
    const struct lofi__driver *cuda;
    const struct lofi__nccl_library *library;
    int timeout_ms;
    int has_device; /* 1: `context` is retained */
    lofi__cu_device device;
    lofi__cu_context context;       /* the device's primary one */
    lofi__cu_stream callers_stream; /* of the options */
    lofi__cu_stream stream;         /* the communicator's own, non-blocking */
    lofi__cu_address word;          /* what a barrier reduces */

    pthread_mutex_t lock; /* guards what follows, and all calls of NCCL */
    lofi__nccl_comm comm; /* NULL: not yet, or aborted */
    int aborted;
    lofi__cu_event spare[LOFI__NCCL_SPARE_EVENTS];
    int spare_count;
};

lofi_status lofi__nccl_open(const struct lofi__members *members, const lofi_comm_options *options,
                            void *parent, lofi_allgather_fn allgather, void *ctx, void **state);
void lofi__nccl_close(void *state, int forked);
void lofi__nccl_abort(void *state);

/* Makes the device's context the thread's, and gives the thread its own back. */
lofi_status lofi__nccl_enter(const struct lofi__nccl *nccl);
void lofi__nccl_leave(const struct lofi__nccl *nccl);

/* Takes the lock; if the communicator was aborted, returns LOFI_PEER_LOST without it. `where`
 * begins the sentence here and below. */
lofi_status lofi__nccl_lock(struct lofi__nccl *nccl, const char *where);
/* Unlocks, and says what became of a call of NCCL: LOFI_OK if it is done or in progress. After
 * anything else the communicator is aborted. */
lofi_status lofi__nccl_unlock(struct lofi__nccl *nccl, const char *where, lofi__nccl_result result);

/* Waits until NCCL has done what it was told, and `stream`, unless it is NULL, all that is on it.
 * LOFI_TIMED_OUT at the deadline; after an error the communicator is aborted. */
lofi_status lofi__nccl_wait(struct lofi__nccl *nccl, const char *where, lofi__cu_stream stream,
                            int64_t deadline_ns);

/* The first puts an event on the caller's stream as it is now, the second ends the event. The
 * context has to be current. */
lofi_status lofi__nccl_mark(struct lofi__nccl *nccl, lofi__cu_event *event);
void lofi__nccl_unmark(struct lofi__nccl *nccl, lofi__cu_event event);

/* LOFI_INVALID if `data` is no device memory; `what` says whose it is. The context is current. */
lofi_status lofi__nccl_check_data(const struct lofi__nccl *nccl, const char *what,
                                  const void *data);

extern const struct lofi__memory lofi__nccl_memory;

#endif /* LOFI_TRANSPORT_NCCL_COMM_H */
