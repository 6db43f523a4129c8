/* SPDX-License-Identifier: MIT */
/* The mirror: which part of a collective runs while nodes train apart, and the session that says
 * whether they do. */
#ifndef LOFI_MIRROR_H
#define LOFI_MIRROR_H

#include "lofi/base.h"
#include "lofi/collective.h"
#include "lofi/nodes.h"

LOFI__DECLARATIONS_BEGIN

/* ---- the mirror plan ------------------------------------------------------------------------- */

typedef enum lofi_scope { LOFI_SCOPE_WORLD = 0, LOFI_SCOPE_NODE = 1 } lofi_scope;

/* The issuer of a collective. A broadcast of a buffer by DDP and a broadcast of a batch by a script
 * look alike in size and type; only the place that issues them knows. */
typedef enum lofi_issuer {
    LOFI_BY_USER = 0,
    LOFI_BY_WRAPPER = 1, /* DDP's own broadcasts, and others that only keep replicas equal */
    LOFI_BY_BACKWARD = 2 /* the backward of torch.distributed.nn.functional */
} lofi_issuer;

typedef struct lofi_call {
    size_t size;
    lofi_collective collective;
    lofi_op op;         /* read for reductions only */
    int is_bool;        /* 1: the elements are booleans, whose sum is a logical or */
    int root;           /* group rank; read for reduce, broadcast, gather, scatter */
    int peer;           /* group rank; read for send, recv */
    lofi_issuer issuer; /* who issued the call */
    lofi_scope scope;   /* the scope in force, from lofi_session_scope */
    int strict;         /* 1: refuse what would cross nodes unasked */
} lofi_call;
#define LOFI_CALL_INIT                                                                             \
    {                                                                                              \
        sizeof(lofi_call), LOFI_BARRIER, LOFI_SUM, 0, 0, 0, LOFI_BY_USER, LOFI_SCOPE_WORLD, 0      \
    }

typedef enum lofi_action {
    LOFI_DO_REAL = 0,    /* the collective as issued, on the whole group */
    LOFI_DO_LOCAL = 1,   /* on the members of this node, as the other fields say */
    LOFI_DO_NOTHING = 2, /* this node takes no part; the call succeeds at once */
    LOFI_DO_IMPLICIT = 3 /* as issued, on the whole group, although nodes train apart: compare a
                             tag first, warn once per call site, count it */
} lofi_action;

typedef enum lofi_adjust {
    LOFI_ADJUST_NONE = 0,
    LOFI_ADJUST_SCALE = 1, /* multiply every input element by `factor` */
    LOFI_ADJUST_POWER = 2, /* raise every input element to the power `factor` */
    LOFI_ADJUST_ZERO = 3   /* replace every input element by zero */
} lofi_adjust;

typedef struct lofi_plan {
    lofi_action action;
    lofi_adjust adjust; /* of the inputs, before the local collective */
    int64_t factor;     /* m, the number of nodes that the group touches; 1 without an adjustment */
    int tile;           /* 1: one result per member of the group is wanted; the result for member r
                           is the local result for place lofi_group_place(group, r) */
    /* LOFI_DO_LOCAL sets these, the other actions leave them at -1: */
    int root; /* place of the root's image in this node; -1 without a root */
    int peer; /* place of the peer in this node; -1 without a peer */
} lofi_plan;

/*
 * Plans what this node does about one collective. Pure: the same arguments give the same answer,
 * and on every rank of a node the same plan.
 *
 * A group inside one node, and any group at world scope, is LOFI_DO_REAL. Else, at node scope:
 *   all_reduce           local; SUM, PREMUL_SUM: scale by m; PRODUCT: power m (these three on
 *                        booleans: nothing); BXOR: zero if m is even; AVG, MIN, MAX, BAND, BOR:
 *                        nothing
 *   all_gather           local, tiled
 *   barrier              local
 *   reduce, gather       in the root's node as all_reduce and all_gather, to the root; elsewhere
 *                        LOFI_DO_NOTHING
 *   broadcast            by the wrapper: local, from the root's image; else LOFI_DO_IMPLICIT, or
 *                        refused if strict
 *   scatter              LOFI_DO_IMPLICIT, or refused if strict
 *   reduce_scatter,      by the backward: local; reduce_scatter: adjusted as all_reduce,
 *   all_to_all           all_to_all: tiled; in both each member contributes, and receives, the
 *                        slots of the members of this node. Else refused.
 *   send, recv           local if the peer is in this node, else refused
 *   recv from any        local
 *
 * Errors: LOFI_UNSUPPORTED for what is refused, and for an uneven group at node scope: the
 * sentence names the call and says what to do instead. LOFI_INVALID for a root or peer outside
 * of the group or a value that is not in its enum.
 */
lofi_status lofi_mirror_plan(const lofi_group *group, const lofi_call *call, lofi_plan *plan);

/*
 * Payload that a real collective on the whole group makes the calling rank send to other nodes,
 * in bytes: what any algorithm must send at least, the node's share divided evenly among its
 * members, without headers, rounded down. `bytes` is the size of this rank's input (broadcast,
 * scatter: of what the root sends to one member; all_to_all: of the whole input).
 *   all_reduce  2 (m-1)/m * bytes / l      all_gather  (m-1) * bytes
 *   reduce      bytes / l outside the root's node    gather  bytes outside the root's node
 *   broadcast   the root: (m-1) * bytes    scatter     the root: (n - l) * bytes
 *   reduce_scatter, all_to_all  (n - l)/n * bytes    send  bytes, to another node
 */
uint64_t lofi_cross_bytes(const lofi_group *group, lofi_collective collective, int root_or_peer,
                          uint64_t bytes);

/* ---- session: phases, scopes, statistics ----------------------------------------------------- */

typedef enum lofi_phase {
    LOFI_PHASE_SETUP = 0,
    LOFI_PHASE_TRAIN = 1,
    LOFI_PHASE_AVERAGE = 2, /* weights are exchanged */
    LOFI_PHASE_DONE = 3,
    LOFI_PHASE_EVALUATE = 4 /* the average is in place of the node's own weights, for a while */
} lofi_phase;

typedef enum lofi_event {
    LOFI_EVENT_TRAIN = 0,   /* a forward with gradients, lofi.start(): setup, done -> train */
    LOFI_EVENT_AVERAGE = 1, /* an average begins: from any other phase -> average */
    /* Own weights again, training goes on where it was: average, evaluate -> the phase before. */
    LOFI_EVENT_AVERAGE_BACK = 2,
    LOFI_EVENT_AVERAGE_DONE = 3, /* it was the final one: average, evaluate -> done */
    LOFI_EVENT_EVALUATE = 4      /* the average is in, and is used: average -> evaluate */
} lofi_event;

/* The purpose that a collective served, for the statistics. */
typedef enum lofi_purpose {
    LOFI_FOR_SETUP = 0,
    LOFI_FOR_TRAINING = 1,
    LOFI_FOR_EVALUATION = 2,
    LOFI_FOR_AVERAGE = 3,
    LOFI_FOR_BYPASS = 4, /* on groups that are not lofi's */
    LOFI_FOR_DONE = 5,
    LOFI_PURPOSE_COUNT = 6
} lofi_purpose;

/* "setup", "training" and so on; "unknown" for a value not listed. Static storage. */
const char *lofi_purpose_name(lofi_purpose purpose);

/* The state of one process: its phase, the scopes in force, its counters. */
typedef struct lofi_session lofi_session;

lofi_status lofi_session_create(lofi_session **out);
void lofi_session_destroy(lofi_session *session);

lofi_phase lofi_session_phase(const lofi_session *session);
/* "setup", "train", "average", "done", "evaluate" */
const char *lofi_phase_name(lofi_phase phase);

/* LOFI_EVENT_TRAIN in train is a no-op, as it is during an average and an evaluation: the forward
 * passes of an evaluation do not restart training. An average within an evaluation (of a second
 * model) leaves the phase before the first one to go back to. LOFI_STATE for an event that the
 * phase does not allow (AVERAGE within average, the ends of an average outside of one). */
lofi_status lofi_session_event(lofi_session *session, lofi_event event);

/* The innermost pushed scope, else the phase's: node while training, world otherwise. */
lofi_scope lofi_session_scope(const lofi_session *session);
/* At most 64 deep (LOFI_STATE beyond, and for a pop without a push). The stack is the process's:
 * push and pop belong on the thread that drives training. */
lofi_status lofi_session_push_scope(lofi_session *session, lofi_scope scope);
lofi_status lofi_session_pop_scope(lofi_session *session);

/* Counts one collective. The purpose comes from the phase unless `purpose` is not negative. */
void lofi_session_count(lofi_session *session, lofi_scope scope, int purpose, uint64_t cross_bytes);

typedef struct lofi_stats {
    size_t size;
    lofi_phase phase;
    /* [scope][purpose] */
    uint64_t collectives[2][LOFI_PURPOSE_COUNT];
    /* payload sent by this rank to other nodes, by purpose; see lofi_cross_bytes */
    uint64_t cross_bytes[LOFI_PURPOSE_COUNT];
} lofi_stats;
#define LOFI_STATS_INIT                                                                            \
    {                                                                                              \
        sizeof(lofi_stats), LOFI_PHASE_SETUP, {{0}},                                               \
        {                                                                                          \
            0                                                                                      \
        }                                                                                          \
    }

/* `stats` begins as LOFI_STATS_INIT. Counters are read one by one, not as a snapshot. */
lofi_status lofi_session_get_stats(const lofi_session *session, lofi_stats *stats);

LOFI__DECLARATIONS_END

#endif /* LOFI_MIRROR_H */
