/* SPDX-License-Identifier: MIT */
/*
 * liblofi: what decides and what computes in lo-fi training.
 *
 * lo-fi (Wortsman et al. 2022, arXiv 2210.11948) fine-tunes on K disjoint nodes of L ranks.
 * Gradients are all-reduced inside a node only, nothing crosses nodes while training, and at the
 * end the nodes' weights are averaged. While training, each node behaves as if every other node
 * were its mirror image: a collective on a group of n = K * l ranks returns, inside the node, what
 * the real collective would return if every rank held the data of its image in this node.
 *
 * This header is the specification: what is not in it is not API. The library knows neither
 * Python nor torch and opens no connection: between machines bytes move through functions of the
 * caller, inside one through shared memory, between GPUs through NCCL. It starts a thread for a
 * communicator on which a collective is posted, threads for the time of lofi_average_files, and no
 * other.
 *
 * Conventions
 *   Names      lofi_<noun>_<verb>. "create" pairs with "destroy", "open" with "close"; both
 *              take NULL as a no-op.
 *   Errors     Fallible functions return lofi_status. Results come through the last arguments
 *              and are written on LOFI_OK only. lofi_last_error() has the sentence for a person.
 *   Threads    Functions without an object are safe from any thread. A topology or a group is
 *              immutable after its creation and may be shared. A session may be used by any
 *              number of threads at once.
 *   Growth     Option structs start with `size`, set by their LOFI_*_INIT macro; a library reads
 *              only the fields that the caller's header knew. Enums are never renumbered.
 *              Same major version, same ABI (before 1.0: same minor version).
 *   Units      _bytes is bytes, _count is elements, _ms is milliseconds.
 */
#ifndef LOFI_H
#define LOFI_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#pragma GCC visibility push(default) /* exported; the library builds all else hidden */
#endif
#ifdef __cplusplus
extern "C" {
#endif

#define LOFI_VERSION_MAJOR 0
#define LOFI_VERSION_MINOR 1
#define LOFI_VERSION_PATCH 0

/* ---- status ------------------------------------------------------------------------------ */

/* One list makes the enum, the names and the default texts. */
#define LOFI_STATUS_MAP(X)                                                                         \
    X(OK, 0, "success")                                                                            \
    X(IN_PROGRESS, 1, "not finished yet")                                                          \
    X(INVALID, -1, "an argument or a setting is wrong")                                            \
    X(NO_MEMORY, -2, "out of memory")                                                              \
    X(UNSUPPORTED, -3, "not possible while nodes train apart")                                     \
    X(TIMED_OUT, -4, "a deadline passed")                                                          \
    X(PEER_LOST, -5, "another rank is gone")                                                       \
    X(SYSTEM, -6, "the operating system reported an error")                                        \
    X(CORRUPT, -7, "data is damaged or not what it claims to be")                                  \
    X(ABI, -8, "parts of different lofi versions do not fit together")                             \
    X(STATE, -9, "not possible in the current phase")

typedef enum lofi_status {
#define LOFI_STATUS_ENUM(name, value, text) LOFI_##name = (value),
    LOFI_STATUS_MAP(LOFI_STATUS_ENUM)
#undef LOFI_STATUS_ENUM
} lofi_status;

/* "LOFI_INVALID" and so on; "LOFI_UNKNOWN" for a value that is not listed. Static storage. */
const char *lofi_status_name(lofi_status status);

/* The general meaning of a status, from the list above. Static storage. */
const char *lofi_status_text(lofi_status status);

/* The sentence that belongs to the last failure on the calling thread, or "". Borrowed; valid
 * until the next failing lofi call on this thread. */
const char *lofi_last_error(void);

/* ---- version and log --------------------------------------------------------------------- */

/* The version of the library that is loaded, as major * 10000 + minor * 100 + patch. */
int lofi_version(void);

/* "0.1.0 (gcc 12.2.0, x86_64)": version, compiler and architecture. Static storage. */
const char *lofi_build_info(void);

typedef enum lofi_log_level {
    LOFI_LOG_ERROR = 0,
    LOFI_LOG_WARN = 1,
    LOFI_LOG_INFO = 2,
    LOFI_LOG_DEBUG = 3,
    LOFI_LOG_TRACE = 4
} lofi_log_level;

/* Called with one line, without a newline or another control character. It may run on any thread;
 * it must not call lofi. */
typedef void (*lofi_log_fn)(void *ctx, lofi_log_level level, const char *line);

/* Levels up to `level` are passed on. The default is LOFI_LOG_WARN. */
void lofi_log_set_level(lofi_log_level level);

/* Reads "error", "warn", "info", "debug" or "trace". LOFI_INVALID names the word and the list. */
lofi_status lofi_log_level_parse(const char *word, lofi_log_level *level);

/* Replaces the sink; NULL restores the default, which writes to stderr. `ctx` is borrowed until
 * the next call. Set it before other threads log. */
void lofi_log_set_callback(lofi_log_fn fn, void *ctx);

/* printf-style. Emits a line if `level` is enabled. */
void lofi_log(lofi_log_level level, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* ---- topology: which ranks make a node ---------------------------------------------------- */

/* Nodes are runs of consecutive ranks, all of the same size: node k holds the ranks
 * k * L ... k * L + L - 1. */
typedef struct lofi_topology lofi_topology;

/* Gathers `bytes` bytes of every rank, in rank order, into `all` (world_size * bytes). It is the
 * only thing that creation needs from the outside; over a key-value store it is one set and
 * world_size gets. It must enforce a deadline of its own. On failure it returns a status other
 * than LOFI_OK; lofi_set_error may hold the reason. */
typedef lofi_status (*lofi_allgather_fn)(void *ctx, const void *mine, size_t bytes, void *all);

typedef struct lofi_topology_options {
    size_t size;
    int rank;             /* 0 ... world_size - 1 */
    int world_size;       /* >= 1 */
    int node_size;        /* ranks in a node; 0: find out, see lofi_topology_create */
    const char *settings; /* may be NULL. Text that has to be the same on every rank: the other
                             settings of the embedding program. At most 1023 bytes. */
    const char *problem;  /* may be NULL. A sentence: this rank can't start. It becomes the error
                             of every rank, so that none waits for this one. At most 511 bytes. */
} lofi_topology_options;
#define LOFI_TOPOLOGY_OPTIONS_INIT                                                                 \
    {                                                                                              \
        sizeof(lofi_topology_options), 0, 1, 0, NULL, NULL                                         \
    }

/*
 * Finds the nodes and checks that every rank means the same. Collective: all ranks call it, and
 * all return the same status, with the same sentence. Blocks in `allgather` only.
 *
 * The size of a node is, in this order: options->node_size; LOFI_NODE_SIZE; LOCAL_WORLD_SIZE (as
 * torchrun sets it); SLURM_NTASKS_PER_NODE; the number of consecutive ranks with the same host
 * name. An empty variable counts as unset.
 *
 * Errors: LOFI_INVALID when a variable is not a positive decimal integer (names rank, variable
 * and value), when ranks disagree on the size or the settings (names two ranks and what each
 * has), when the world is not divisible by the size, when hosts hold different numbers of ranks
 * or ranks of one host are not consecutive (names the sizes; a size from `node_size` or
 * LOFI_NODE_SIZE may join or split hosts); LOFI_ABI when ranks run different releases (names
 * two); LOFI_CORRUPT when the gathered bytes are not what ranks gave; the status of `allgather`;
 * LOFI_NO_MEMORY. The last two, and options without a valid rank and world, are this rank's own.
 */
lofi_status lofi_topology_create(const lofi_topology_options *options, lofi_allgather_fn allgather,
                                 void *ctx, lofi_topology **out);
void lofi_topology_destroy(lofi_topology *topology);

int lofi_topology_rank(const lofi_topology *topology);
int lofi_topology_world_size(const lofi_topology *topology);
int lofi_topology_node_size(const lofi_topology *topology);  /* L */
int lofi_topology_node_count(const lofi_topology *topology); /* K */
int lofi_topology_node_of(const lofi_topology *topology, int rank);
/* Where the size came from: "node_size", "LOFI_NODE_SIZE", "LOCAL_WORLD_SIZE",
 * "SLURM_NTASKS_PER_NODE" or "host names". Static storage. */
const char *lofi_topology_source(const lofi_topology *topology);

/* Sets the calling thread's last error; for callbacks such as lofi_allgather_fn. */
void lofi_set_error(const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 1, 2)))
#endif
    ;

/* ---- groups: where a process group lies among the nodes ----------------------------------- */

/* A process group of n ranks. Seen from the calling rank it has l members in the own node
 * (1 <= l <= n) and touches m nodes. The place of a member is its position among the group's
 * members of its own node, in group order. The group is even if every touched node holds the
 * same number of members; then n = m * l, and the image of a member is the member of the own
 * node with the same place. */
typedef struct lofi_group lofi_group;

/* `global_ranks` (borrowed during the call) are the members in group order, `count` of them,
 * distinct, the calling rank among them; NULL with count 0 is the whole world. The group keeps
 * no reference to `topology`. LOFI_INVALID names the rank that is out of range or repeated. */
lofi_status lofi_group_create(const lofi_topology *topology, const int *global_ranks, int count,
                              lofi_group **out);
void lofi_group_destroy(lofi_group *group);

int lofi_group_size(const lofi_group *group);       /* n */
int lofi_group_rank(const lofi_group *group);       /* of the caller, in the group */
int lofi_group_node_count(const lofi_group *group); /* m: nodes touched; 1: inside one node */
int lofi_group_local_size(const lofi_group *group); /* l: members in the own node */
int lofi_group_is_even(const lofi_group *group);    /* 1 or 0 */
/* For a member `rank` of the group (0 ... n - 1): */
int lofi_group_global_rank(const lofi_group *group, int rank);
int lofi_group_place(const lofi_group *group, int rank); /* also: its image, as a place here */
/* Index 0 ... m - 1 of its node among the touched nodes, ascending; and back to the node's number
 * in the world. */
int lofi_group_node_of(const lofi_group *group, int rank);
int lofi_group_node_number(const lofi_group *group, int node_index);
/* The member at `place` of touched node `node_index`; -1 if there is none. */
int lofi_group_member(const lofi_group *group, int node_index, int place);

/* ---- the mirror plan ----------------------------------------------------------------------- */

typedef enum lofi_scope { LOFI_SCOPE_WORLD = 0, LOFI_SCOPE_NODE = 1 } lofi_scope;

typedef enum lofi_collective {
    LOFI_ALL_REDUCE = 0,
    LOFI_REDUCE = 1,
    LOFI_BROADCAST = 2,
    LOFI_ALL_GATHER = 3,
    LOFI_GATHER = 4,
    LOFI_SCATTER = 5,
    LOFI_REDUCE_SCATTER = 6,
    LOFI_ALL_TO_ALL = 7,
    LOFI_BARRIER = 8,
    LOFI_SEND = 9,
    LOFI_RECV = 10,
    LOFI_RECV_ANY = 11,
    LOFI_COLLECTIVE_COUNT = 12
} lofi_collective;

typedef enum lofi_op {
    LOFI_SUM = 0,
    LOFI_AVG = 1,
    LOFI_PRODUCT = 2,
    LOFI_MIN = 3,
    LOFI_MAX = 4,
    LOFI_BAND = 5,
    LOFI_BOR = 6,
    LOFI_BXOR = 7,
    LOFI_PREMUL_SUM = 8,
    LOFI_OP_COUNT = 9
} lofi_op;

/* Who issued a collective. A broadcast of a buffer by DDP and a broadcast of a batch by a script
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
    /* Of LOFI_DO_LOCAL only; the other actions leave them at -1: */
    int root; /* place of the root's image in this node; -1 without a root */
    int peer; /* place of the peer in this node; -1 without a peer */
} lofi_plan;

/*
 * What to do in this node about one collective. Pure: the same arguments give the same answer,
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

/* "all_reduce", "SUM": names as torch.distributed spells them. Static storage. */
const char *lofi_collective_name(lofi_collective collective);
const char *lofi_op_name(lofi_op op);

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

/* ---- session: phases, scopes, statistics --------------------------------------------------- */

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

/* What a collective served, for the statistics. */
typedef enum lofi_purpose {
    LOFI_FOR_SETUP = 0,
    LOFI_FOR_TRAINING = 1,
    LOFI_FOR_EVALUATION = 2,
    LOFI_FOR_AVERAGE = 3,
    LOFI_FOR_BYPASS = 4, /* on groups that are not lofi's */
    LOFI_FOR_DONE = 5,
    LOFI_PURPOSE_COUNT = 6
} lofi_purpose;

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

/* Set stats->size = sizeof(lofi_stats) first. Counters are read one by one, not as a snapshot. */
lofi_status lofi_session_get_stats(const lofi_session *session, lofi_stats *stats);

/* ---- kernels -------------------------------------------------------------------------------- */

typedef enum lofi_dtype {
    LOFI_F64 = 0,
    LOFI_F32 = 1,
    LOFI_F16 = 2,
    LOFI_BF16 = 3,
    LOFI_BYTES = 4, /* no arithmetic: one element is one byte */
    LOFI_I8 = 5,
    LOFI_U8 = 6,
    LOFI_I32 = 7,
    LOFI_I64 = 8,
    /* Floats of 8 bits, as torch has them: float8_e4m3fn has no infinities, and all beyond 448
     * becomes 448; float8_e5m2 is a shorter float16. For means, not for reductions. */
    LOFI_F8_E4M3 = 9,
    LOFI_F8_E5M2 = 10,
    LOFI_DTYPE_COUNT = 11
} lofi_dtype;

size_t lofi_dtype_bytes(lofi_dtype dtype); /* of one element; 0 for a value not listed */
/* "float32", "bytes" and so on; "unknown" for a value not listed. Static storage. */
const char *lofi_dtype_name(lofi_dtype dtype);

/*
 * out[i] = ((w0*in0[i] + w1*in1[i]) + w2*in2[i] ...) / (w0 + w1 + ...), for `count` elements of
 * `inputs` buffers: products, sums and the quotient in IEEE double, in the order given, without
 * fused multiply-add, rounded once to the dtype, to nearest even. The bits do not depend on
 * threads, chunks or the CPU, given the default floating-point environment: rounding to nearest,
 * subnormals not flushed. LOFI_BYTES and the integers copy the first input.
 *
 * `weights` may be NULL for equal weights (all 1), else finite, >= 0, with a sum > 0. `out` may be
 * one of the inputs, not overlap them otherwise. Buffers are aligned to the element.
 * LOFI_INVALID names what is wrong; nothing is written then.
 */
lofi_status lofi_mean(lofi_dtype dtype, void *out, const void *const *in, const double *weights,
                      int inputs, size_t count);

/* A mean whose inputs and output have dtypes of their own, mixed with a base if there is one: as
 * lofi_average_files says, with the same bits. All dtypes are floats. */
typedef struct lofi_mix {
    size_t size;
    lofi_dtype out_dtype;
    const lofi_dtype *in_dtypes; /* one for each input; NULL: all as the output's */
    const double *weights;       /* as in lofi_mean */
    int inputs;
    const void *base; /* NULL: none */
    lofi_dtype base_dtype;
    double alpha; /* read with a base: out = (1 - alpha)*base + alpha*mean */
} lofi_mix;
#define LOFI_MIX_INIT                                                                              \
    {                                                                                              \
        sizeof(lofi_mix), LOFI_F32, NULL, NULL, 1, NULL, LOFI_F32, 1.0                             \
    }

/* Errors and buffers as in lofi_mean; `out` may be an input or the base if their elements are of
 * one size. */
lofi_status lofi_mean_mixed(const lofi_mix *mix, void *out, const void *const *in, size_t count);

/* Index of the first element that is NaN or infinite, or -1. Always -1 for what is no float. */
int64_t lofi_find_nonfinite(lofi_dtype dtype, const void *data, size_t count);

/*
 * lofi_mean on a GPU: the same formula and the same bits (which NaN a NaN is, is not defined), for
 * `inputs` buffers of which the one with index i begins at `in` + i * `stride_bytes`. Puts the work
 * on `stream` and returns; it waits for nothing. Any thread, whether it has used CUDA or not, also
 * while the stream is captured into a graph.
 *
 *   out, in    Memory of one GPU, aligned to the element; `out` may be one of the inputs, not
 *              overlap them otherwise. 16 bytes at a time are read where `in`, `out` and
 *              `stride_bytes` are multiples of 16. Borrowed until the work on the stream is done.
 *   weights    Memory of the host, or NULL, as in lofi_mean; read before the call returns.
 *   inputs     1 ... LOFI_CUDA_MEAN_INPUTS: the weights travel with the launch.
 *   stream     A cudaStream_t or CUstream of that GPU; NULL is its default stream.
 *
 * LOFI_INVALID names the argument that is wrong; LOFI_UNSUPPORTED says why there can be no kernel:
 * the library was built without them, no driver, a GPU that they were not built for; LOFI_SYSTEM has
 * the driver's words; LOFI_NO_MEMORY. What fails later fails on the stream, as all of CUDA.
 * The kernels stay loaded in a CUDA context once used there: it must not be destroyed or reset
 * and then be used with lofi again.
 */
#define LOFI_CUDA_MEAN_INPUTS 500
lofi_status lofi_cuda_mean(lofi_dtype dtype, void *out, const void *in, size_t stride_bytes,
                           int inputs, const double *weights, size_t count, void *stream);

/* 1 if this library has its kernels for GPUs (it was built with nvcc), else 0. Asks no driver. */
int lofi_cuda_is_built(void);

typedef struct lofi_digest {
    uint64_t word[2];
} lofi_digest;

/* A 128-bit fingerprint of `bytes` bytes, for telling equal tensors from different ones; not
 * cryptographic. The same on every machine and in every release with the same major version. */
lofi_digest lofi_digest_of(const void *data, size_t bytes);

/* ---- the average over nodes ------------------------------------------------------------------ */

/* What one node says of itself before an average. */
typedef struct lofi_node_report {
    int32_t present;   /* 0: it did not come */
    int32_t reserved;  /* 0 */
    int64_t nonfinite; /* index of its first tensor that differs between nodes and is not finite;
                          -1: all are finite */
    double weight;     /* finite, > 0 */
} lofi_node_report;

/*
 * Decides who is in an average: the nodes that are present and finite. Pure; the same answer on
 * every rank. Writes to `members` (capacity `nodes`) the numbers of the nodes that are in,
 * ascending, and to `member_count` how many. What an absent node reports is not read.
 * LOFI_INVALID for a bad weight (names the node), and for min_nodes outside of 1 ... nodes;
 * LOFI_PEER_LOST when fewer than `min_nodes` are present; LOFI_STATE when no present node is
 * finite.
 */
lofi_status lofi_average_members(const lofi_node_report *reports, int nodes, int min_nodes,
                                 int *members, int *member_count);

/* One step of an average that is streamed in chunks. `count` elements from `begin` are averaged;
 * they are cut into local_size shards, one for each rank of a node, and each shard into `nodes`
 * pieces of `piece_count` elements, one for each node. Past the end of the data the last pieces
 * are padded: local_size * nodes * piece_count >= count. */
typedef struct lofi_chunk {
    uint64_t begin;
    uint64_t count;
    uint64_t piece_count;
} lofi_chunk;

/*
 * Chunk number `index` of `total_count` elements, with chunks of at most `chunk_count` elements
 * (rounded up to a multiple of nodes * local_size). LOFI_INVALID past the last chunk or for
 * sizes < 1. lofi_chunk_total gives the number of chunks; 0 for bad sizes or total_count 0.
 */
lofi_status lofi_chunk_at(uint64_t total_count, int nodes, int local_size, uint64_t chunk_count,
                          uint64_t index, lofi_chunk *chunk);
uint64_t lofi_chunk_total(uint64_t total_count, int nodes, int local_size, uint64_t chunk_count);

/* ---- communicators --------------------------------------------------------------------------- */

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
 * begins when what was enqueued on `stream` of the options before it was issued is done, and runs on
 * a stream of the communicator's own; when lofi_run returns, or a posted one is done, so is the work
 * on the device, and any stream sees the result. It is given up at its deadline, and after an
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

/* What an embedding program supplies for the transport "host": movers of bytes. Reductions are
 * computed by liblofi. Each function blocks until this rank's part is done, has a deadline of its
 * own, gets buffers that do not overlap, and returns a status; lofi_set_error may hold the reason. They run on the thread that
 * waits for a collective, or, posted, on the communicator's thread; never two at once. */
typedef struct lofi_host_functions {
    size_t size;
    /* As for bootstrap: often it is the same function. */
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
 * the same time, each its own, and nothing else runs on the parent meanwhile: `color` says who stays
 * together, `rank` in which order (ncclCommSplit). Each has connections and buffers of its own: one
 * that is aborted leaves the parent and the others alone.
 *
 * LOFI_INVALID names the option that is wrong; LOFI_NO_MEMORY, and the status of `allgather` (a
 * LOFI_SYSTEM of which becomes LOFI_PEER_LOST), are this rank's own.
 */
lofi_status lofi_comm_create(const lofi_comm_options *options, lofi_allgather_fn allgather,
                             void *ctx, lofi_comm **out);

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
    lofi_collective collective; /* those above, and LOFI_BARRIER, which reads no other field */
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
} lofi_task;
#define LOFI_TASK_INIT                                                                             \
    {                                                                                              \
        sizeof(lofi_task), LOFI_BARRIER, LOFI_BYTES, LOFI_SUM, 1.0, 0, 0, 0, NULL, NULL, NULL,     \
            NULL                                                                                   \
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

/*
 * The average over nodes, for C programs: data = the mean over the nodes, with the rounding of
 * lofi_mean, on every rank. Collective over all ranks of all nodes. `node` connects the ranks of a
 * node, which hold the same `data`; `column` the ranks at this place of all nodes, in node order.
 * `weights` has one for each node (the same on all ranks), or is NULL. Each rank averages its
 * shard with its column, chunk by chunk, and the node gathers the shards: 2 (K-1)/K of the bytes
 * cross for each node, `scratch_bytes` is what it may allocate (0: 64 MiB; at least 4 KiB).
 * After an error `data` is undefined.
 *
 * With both communicators on nccl `data` and the scratch memory lie on the device (lofi_cuda_mean,
 * with the same bits); it begins when what was enqueued on both streams is done, and is done when
 * it returns. LOFI_INVALID if only one of them is.
 */
lofi_status lofi_finalize_average(lofi_comm *node, lofi_comm *column, lofi_dtype dtype, void *data,
                                  size_t count, const double *weights, size_t scratch_bytes);

/* ---- checkpoints in files -------------------------------------------------------------------- */

/*
 * A checkpoint in safetensors files, open for reading: a file; an index
 * (model.safetensors.index.json, or of a variant model.safetensors.index.fp16.json) with its shards;
 * or a folder with one of these, as transformers finds them. Immutable; any number of threads may
 * use it at once.
 *
 * Files of strangers are expected: all that safetensors refuses is refused (LOFI_CORRUPT), and an
 * index that names anything but plain files beside it, or links that leave the folder (except from
 * a snapshot of the Hugging Face cache to its blobs). A file that is shortened while it is open
 * gives LOFI_CORRUPT when it is read. lofi_last_error() names the file and the tensor.
 */
typedef struct lofi_checkpoint lofi_checkpoint;

lofi_status lofi_checkpoint_open(const char *path, lofi_checkpoint **out);
void lofi_checkpoint_close(lofi_checkpoint *checkpoint); /* NULL is a no-op */

/* One tensor. The pointers are the checkpoint's, valid until it is closed. */
typedef struct lofi_tensor {
    const char *name;
    const char *dtype;     /* as the format spells it: "BF16", "F8_E4M3", "I64", "BOOL" ... */
    const char *file;      /* path of the file that has it */
    const uint64_t *shape; /* `dims` numbers */
    int dims;
    uint64_t count; /* elements */
    uint64_t bytes;
} lofi_tensor;

/* Tensors have the indices 0 ... count - 1: file after file by name, in each as its data lies. */
uint64_t lofi_checkpoint_count(const lofi_checkpoint *checkpoint);
lofi_status lofi_checkpoint_get(const lofi_checkpoint *checkpoint, uint64_t index,
                                lofi_tensor *tensor);
/* The index of the tensor of this name, or -1. */
int64_t lofi_checkpoint_find(const lofi_checkpoint *checkpoint, const char *name);
/* Copies `bytes` bytes of the tensor's data, from byte `offset` on. Blocks for the disk. */
lofi_status lofi_checkpoint_read(const lofi_checkpoint *checkpoint, uint64_t index, uint64_t offset,
                                 void *out, size_t bytes);

uint64_t lofi_checkpoint_file_count(const lofi_checkpoint *checkpoint);
/* Entry `index` of the __metadata__ of all files, one after the other: returns the key and writes
 * the value; NULL past the last one. */
const char *lofi_checkpoint_metadata(const lofi_checkpoint *checkpoint, uint64_t index,
                                     const char **value);

/* How two tensors of the same shape differ, in double. Where there is nothing to compare (no
 * element, or no number) all is 0 and `equal` says whether the bytes are. */
typedef struct lofi_difference {
    int equal;      /* 1: the same values (a NaN equals a NaN) */
    uint64_t count; /* numbers compared; 0 for dtypes that are not averaged */
    double max;     /* largest |a - b|; NaN if one of them is. Two equal numbers: 0, also if they
                       are not finite; then they do not count for the sums of products */
    double square;  /* sum of (a - b)^2 */
    double dot;     /* sum of a * b */
    double square_a, square_b;
} lofi_difference;

/* Compares tensor `index_a` of `a` with tensor `index_b` of `b`. LOFI_INVALID if shapes differ, or
 * dtypes of which not both are floats. Blocks for the disk. */
lofi_status lofi_checkpoint_compare(const lofi_checkpoint *a, uint64_t index_a,
                                    const lofi_checkpoint *b, uint64_t index_b,
                                    lofi_difference *difference);

/*
 * Which tensors an average takes: is_selected[i] becomes 1 if `only` (NULL: anything) is found in
 * names[i] and `skip` (NULL: nothing) is not, else 0. Both are POSIX extended regular expressions;
 * escapes of other dialects ("\d") are refused. LOFI_INVALID names a wrong one.
 */
lofi_status lofi_names_select(const char *only, const char *skip, const char *const *names,
                              size_t count, unsigned char *is_selected);

/* Called now and then on the thread that waits for an average. Anything but 0 ends it, with
 * LOFI_STATE and nothing left behind. */
typedef int (*lofi_progress_fn)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

typedef struct lofi_average_files_options {
    size_t size;
    const char *const *inputs; /* paths as for lofi_checkpoint_open, all borrowed for the call */
    int input_count;           /* >= 1 */
    const char *out;           /* a file if the first input is one, else a folder */
    const double *weights;     /* as in lofi_mean: one for each input, or NULL */
    const char *base;          /* NULL, or a checkpoint to interpolate from */
    double alpha;              /* read with a base: how far to go from it to the average */
    const char *only;          /* as for lofi_names_select: what is not selected comes from the */
    const char *skip;          /* first input */
    const char *dtype;    /* NULL: each tensor keeps the first's; else "bfloat16", "BF16" ... */
    int integers_first;   /* 1: integers and bools come from the first input. 0: they have to
                                  be equal in all */
    uint64_t shard_bytes; /* 0: files as in the first input. Else a folder, with shards of at
                                  most so many bytes of data, but a tensor at least */
    int threads;          /* 0: one for each CPU that the process may use */
    int force;            /* 1: an output that exists is replaced */
    int fsync;            /* 1: the output is on the disk when the call returns */
    int verify;           /* 1: the output is read again, and compared with the average taken
                                  once more, by plain C, before it gets its name */
    int sha256;           /* 1: the metadata get the SHA-256 of each input file */
    lofi_progress_fn progress; /* may be NULL */
    void *ctx;
} lofi_average_files_options;
#define LOFI_AVERAGE_FILES_OPTIONS_INIT                                                            \
    {                                                                                              \
        sizeof(lofi_average_files_options), NULL, 0, NULL, NULL, NULL, 1.0, NULL, NULL, NULL, 0,   \
            0, 0, 0, 0, 0, 0, NULL, NULL                                                           \
    }

typedef struct lofi_average_report {
    uint64_t averaged_count, copied_count; /* tensors */
    uint64_t bytes_read;                   /* of tensors, without `verify` and `sha256` */
    uint64_t bytes_written;
    uint64_t file_count; /* of safetensors written */
    int threads;
} lofi_average_report;

/*
 * Writes the average of checkpoints. For each selected tensor, element by element, in doubles,
 * each operation rounded by itself, in the order given:
 *
 *     m = ((w0*x0 + w1*x1) + w2*x2 ...) / (w0 + w1 + ...)          lofi_mean
 *     m = (1 - alpha)*base + alpha*m                               with a base
 *
 * and m rounded once, to nearest even, to the dtype of the output: that of the first input, or
 * `dtype`. Inputs may have the tensor in other float dtypes. The bits do not depend on threads or
 * the CPU, and are those of lofi_finalize_average.
 *
 *   Dtypes     F64, F32, F16, BF16, F8_E4M3, F8_E5M2 are averaged; C64 as two F32, without `dtype`.
 *              Integers and BOOL have to be equal in all inputs (and the base): `integers_first`.
 *              All others (FNUZ, E8M0, F6, F4) have to be equal.
 *   Names      The first input and every other (and the base) have the same selected tensors, with
 *              the same shapes, in whatever files. What is not selected comes from the first, as it
 *              is, and may be missing elsewhere. If `only` or `skip` is given, it has to leave one.
 *   Files      Tensors stay in the order and files of the first input; if their sizes change, the
 *              largest elements come first, so that data stay aligned. Shards of another size have
 *              the first's names with other numbers ("model" if it is a file by itself). A folder
 *              also gets a copy of the first folder's other files (config, tokenizer: not hidden, no
 *              weights in other formats, up to 64 MiB each), and of folders with nothing but such
 *              files; the log names what is not copied. Where a config.json there names the dtype of
 *              the weights, it gets `dtype`.
 *   Metadata   The first's entries, "format": "pt" if it has none, and lofi.version, lofi.inputs,
 *              lofi.weights, lofi.base, lofi.alpha, lofi.sha256 as text in JSON.
 *   Output     Appears under its name when it is complete: it is written beside it, under a name
 *              that begins with ".lofi-", and renamed. After an error there is nothing, and what was
 *              there before is untouched; a process that is killed leaves the hidden one. With
 *              `force` a folder is exchanged with an older one in one step. Then the older one's
 *              safetensors files and index, and what the new one has too, are removed, and the rest
 *              is moved to the new one; if that fails, or the process is killed there, the rest is
 *              in the hidden folder, which the error names. An input is never replaced.
 *   Memory     A few MiB for each thread, however large the files; for the names about 200 bytes for
 *              each tensor of each input, and meanwhile five times the longest header.
 *
 * LOFI_INVALID for options, and for checkpoints that do not fit together (names the tensor and both
 * files); LOFI_CORRUPT for damaged files, and for one that changes meanwhile; LOFI_SYSTEM for the
 * disk. `report` may be NULL.
 */
lofi_status lofi_average_files(const lofi_average_files_options *options,
                               lofi_average_report *report);

/* LOFI_INVALID if the options by themselves are wrong, whatever is in the files; opens none. */
lofi_status lofi_average_files_check(const lofi_average_files_options *options);

#ifdef __cplusplus
}
#endif
#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#endif /* LOFI_H */
