/* SPDX-License-Identifier: MIT */
/* A communicator and a request, as the files of this folder see them. */
#ifndef LOFI_COMM_COMM_H
#define LOFI_COMM_COMM_H

#include "core/error.h"
#include "core/fork.h"
#include "transport/transport.h"

#include <pthread.h>
#include <stdatomic.h>

struct lofi_request {
    lofi_comm *comm;
    lofi_task task;
    void *ticket; /* the transport's, see issue */
    void **list;  /* owns the pointers of the task's lists; NULL: none */
    lofi_done_fn done;
    void *ctx;
    struct lofi_request *next;
    _Atomic int finished;   /* 1: `status` and `error` are final; paired release and acquire */
    _Atomic int references; /* the queue's and the caller's */
    lofi_status status;
    char *error; /* NULL: none, or no memory for it */
};

struct lofi_comm {
    const struct lofi__transport *transport;
    void *state;
    struct lofi__members members;
    int timeout_ms;
    unsigned generation; /* of the process that may use it */

    pthread_mutex_t lock;    /* guards what follows */
    pthread_cond_t has_work; /* for the thread */
    pthread_cond_t changed;  /* for those who wait: one has run */
    struct lofi_request *first, *last;
    int running; /* 1: somebody runs a request, without the lock */
    int ending;  /* 1: being destroyed */
    int has_thread;
    pthread_t thread;
    lofi_status broken; /* of the first collective that failed; LOFI_OK */
    char why[LOFI__ERROR_BYTES];
};

/* LOFI_STATE in a forked child. */
lofi_status lofi__comm_check_process(const lofi_comm *comm);
/* Fills `checked` with what the caller's header knew of `task`, and refuses what makes no sense. */
lofi_status lofi__task_check(const lofi_comm *comm, const lofi_task *task, lofi_task *checked);

#endif /* LOFI_COMM_COMM_H */
