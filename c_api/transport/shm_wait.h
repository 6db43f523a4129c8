/* SPDX-License-Identifier: MIT */
/* Ranks that wait for each other: stages, deadlines, and the end of a communicator. */
#ifndef LOFI_TRANSPORT_SHM_WAIT_H
#define LOFI_TRANSPORT_SHM_WAIT_H

#include "transport/shm_segment.h"
#include "transport/transport.h"

struct lofi__shm_peer {
    int pid;
    int watch; /* see lofi__peer_watch */
};

/* See shm_pace.c. Zero is the beginning. */
struct lofi__shm_pace {
    int way; /* in which the next chunk is written: 0 through the caches, 1 past them */
    int is_trial;
    int chunks;      /* written in this way since it began */
    int64_t time[2]; /* of a chunk, by way; 0: not known */
};

/* One rank's end of a communicator. */
struct lofi__shm {
    const struct lofi__members *members;
    struct lofi__shm_segment segment;
    struct lofi__shm_peer *peer; /* by rank */
    int crowded;                 /* more ranks than cores */
    uint32_t stage;              /* published by this rank */
    uint32_t call_number;        /* of this rank's current collective */
    uint32_t call_stage;         /* in which it began: its record has the call */
    int to_compare;              /* 1: not all ranks are known to be in the same one */
    const void **operand;        /* room for one pointer for each rank, for the running task */
    struct lofi__shm_pace pace;
};

enum lofi__shm_reason {
    LOFI__SHM_FINE = 0,
    LOFI__SHM_LOST = 1,     /* the process of `culprit` has ended, or closed the communicator */
    LOFI__SHM_LATE = 2,     /* `culprit` did not come in time */
    LOFI__SHM_MISMATCH = 3, /* `culprit` is in another collective */
    LOFI__SHM_ABORTED = 4   /* `culprit` asked for it */
};

/* The waits of one collective. */
struct lofi__shm_wait {
    const struct lofi__turn *turn;
    lofi_collective collective; /* which errors name */
    int timeout_ms;
    int64_t deadline_ns; /* 0 until it is needed: to ask for the time costs as much as a small
                            collective's data */
};

/* Blocks until `rank` has published `stage`. LOFI_PEER_LOST, LOFI_TIMED_OUT, LOFI_STATE: the
 * communicator is broken then, for all ranks. */
lofi_status lofi__shm_wait_for(struct lofi__shm *shm, struct lofi__shm_wait *wait, int rank,
                               uint32_t stage);

/* Makes what this rank has written visible, as its next stage, and wakes who waits for it. */
void lofi__shm_publish(struct lofi__shm *shm);

/* Breaks the communicator, unless it is broken already, and explains on this rank why it is. */
lofi_status lofi__shm_fail(struct lofi__shm *shm, const struct lofi__shm_wait *wait,
                           enum lofi__shm_reason reason, int culprit);
/* Breaks the communicator from any thread, without a sentence on this one. `stage`: in which the
 * collective began, for LOFI__SHM_MISMATCH. */
void lofi__shm_break(struct lofi__shm *shm, enum lofi__shm_reason reason, int culprit,
                     uint32_t stage);
/* LOFI_OK, or why the communicator is broken. */
lofi_status lofi__shm_check(struct lofi__shm *shm, const struct lofi__shm_wait *wait);

#endif /* LOFI_TRANSPORT_SHM_WAIT_H */
