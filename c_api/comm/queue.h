/* SPDX-License-Identifier: MIT */
/* The queue of a communicator, and what becomes of a request in it. */
#ifndef LOFI_COMM_QUEUE_H
#define LOFI_COMM_QUEUE_H

#include "comm/comm.h"

#include <time.h>

/* lofi_comm_create and lofi_comm_destroy call these. The second one fails all that is queued, and
 * waits until nothing runs. */
lofi_status lofi__queue_create(lofi_comm *comm);
void lofi__queue_destroy(lofi_comm *comm);

/* Queues the request and returns when it is finished. */
void lofi__queue_run(lofi_comm *comm, struct lofi_request *request);
/* Queues it for the communicator's thread, which starts if there is none yet. The queue then owns
 * one reference. After an error the request is not queued. */
lofi_status lofi__queue_post(lofi_comm *comm, struct lofi_request *request);
/* Returns when the request is finished, or at `limit` of CLOCK_MONOTONIC (NULL: never). */
void lofi__queue_wait(lofi_comm *comm, const struct lofi_request *request,
                      const struct timespec *limit);

/* Gives one reference back; the last frees the request. */
void lofi__request_release(struct lofi_request *request);
int lofi__request_is_finished(const struct lofi_request *request);
/* The sentence that belongs to the status of a finished one. Borrowed. */
const char *lofi__request_error(const struct lofi_request *request);
/* Tells the transport that the request has run, or will not. */
void lofi__request_retire(lofi_comm *comm, struct lofi_request *request);

#endif /* LOFI_COMM_QUEUE_H */
