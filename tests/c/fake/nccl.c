/* SPDX-License-Identifier: MIT */
/* The fake NCCL: communicators, groups, and when work is done. What it computes is in nccl_work.c.
 * All is under the fake driver's lock. */
#define _GNU_SOURCE
#include "fake/nccl_inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INVALID_USAGE 5

enum state { READY, INIT, SPLIT, ENQUEUE, FINALIZE, FINALIZED };

struct ncclComm {
    struct world *world;
    int rank;
    lofi__cu_context context;
    enum state state;
    lofi__nccl_result error;
    uint64_t rounds;   /* that this rank has begun */
    struct part *part; /* ENQUEUE: what goes on the stream next */
    struct {           /* SPLIT: what was asked for */
        int color, key;
        struct ncclComm **made;
    } child;
    struct op {
        int is_used;
        char scalar[8];
    } ops[8];
};

static struct world *worlds;
static struct fake_nccl_held held;
static int holds_finalize;
static int ids;

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (memory == NULL) abort();
    return memory;
}

static lofi__nccl_result misuse(const char *what)
{
    fprintf(stderr, "fake NCCL: %s\n", what);
    held.misuses++;
    return INVALID_USAGE;
}

/* ---- worlds: what the ranks of a communicator share ---- */

static struct world *find_world(const char *id, int count)
{
    for (struct world *world = worlds; world != NULL; world = world->next)
        if (strcmp(world->id, id) == 0) return world;
    struct world *world = allocate(sizeof *world);
    snprintf(world->id, sizeof world->id, "%s", id);
    world->count = count;
    world->next = worlds;
    worlds = world;
    return world;
}

void fake__world_release(struct world *world)
{
    if (--world->references > 0) return;
    struct world **link = &worlds;
    while (*link != world)
        link = &(*link)->next;
    *link = world->next;
    free(world);
}

static struct ncclComm *join(struct world *world, int rank)
{
    struct ncclComm *comm = allocate(sizeof *comm);
    lofi__cu_context context = NULL;

    if (fake__current(&context) != 0) misuse("a communicator without a context");
    comm->context = context;
    comm->world = world;
    comm->rank = rank;
    world->references++;
    if (world->member[rank] != NULL) misuse("a rank comes twice");
    world->member[rank] = comm;
    world->come++;
    held.comms++;
    return comm;
}

static void drop_part(void *ctx)
{
    struct part *part = ctx;
    fake__world_release(part->world);
    free(part);
}

static void leave(struct ncclComm *comm)
{
    for (int i = 0; i < 8; i++)
        held.ops -= comm->ops[i].is_used;
    if (comm->part != NULL) drop_part(comm->part);
    comm->world->member[comm->rank] = NULL;
    fake__world_release(comm->world);
    free(comm);
    held.comms--;
}

/* ---- being asked ---- */

/* All ranks of the parent have asked: the children are made. */
static void make_children(struct world *world)
{
    static int splits;

    splits++;
    for (int rank = 0; rank < world->count; rank++) {
        struct ncclComm *parent = world->member[rank];
        char id[64];
        int place = 0, count = 0;
        for (int other = 0; other < world->count; other++) {
            const struct ncclComm *it = world->member[other];
            if (it->child.color != parent->child.color) continue;
            count++;
            if (it->child.key < parent->child.key ||
                (it->child.key == parent->child.key && other < rank))
                place++;
        }
        snprintf(id, sizeof id, "split %d color %d", splits, parent->child.color);
        struct ncclComm *child = join(find_world(id, count), place);
        child->context = parent->context;
        child->state = INIT;
        *parent->child.made = child;
    }
    for (int rank = 0; rank < world->count; rank++)
        world->member[rank]->state = READY;
}

static int all_split(const struct world *world)
{
    for (int rank = 0; rank < world->count; rank++)
        if (world->member[rank] == NULL || world->member[rank]->state != SPLIT) return 0;
    return 1;
}

static lofi__nccl_result progress(struct ncclComm *comm)
{
    if (comm->error != 0) return comm->error;
    if (comm->world->is_aborted) return LOFI__NCCL_REMOTE_ERROR;
    switch (comm->state) {
    case INIT:
        if (comm->world->come == comm->world->count) comm->state = READY;
        break;
    case SPLIT:
        if (all_split(comm->world)) make_children(comm->world);
        break;
    case ENQUEUE: /* with the second question, whose answer says that it is there */
        if (!comm->part->is_asked_for) {
            comm->part->is_asked_for = 1;
            return LOFI__NCCL_IN_PROGRESS;
        }
        if (fake_cuda_enqueue(comm->part->stream, fake__run_part, drop_part, comm->part) != 0)
            return comm->error = LOFI__NCCL_CUDA_ERROR;
        comm->part = NULL;
        comm->state = READY;
        break;
    case FINALIZE:
        if (!holds_finalize) comm->state = FINALIZED;
        break;
    case READY:
    case FINALIZED:
        return 0;
    }
    return comm->state == READY || comm->state == FINALIZED ? 0 : LOFI__NCCL_IN_PROGRESS;
}

static lofi__nccl_result check_ready(const struct ncclComm *comm, const char *what)
{
    if (comm == NULL) return misuse("no communicator");
    return comm->state == READY ? 0 : misuse(what);
}

/* ---- what the library calls ---- */

const char *ncclGetErrorString(lofi__nccl_result result)
{
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return result >= 0 && result < 8 ? texts[result] : "unknown result code";
}

const char *ncclGetLastError(lofi__nccl_comm comm)
{
    (void)comm;
    return "the fake says so";
}

lofi__nccl_result ncclGetUniqueId(lofi__nccl_id *id)
{
    lofi__nccl_result result = fake__enter("ncclGetUniqueId");
    memset(id, 0, sizeof *id);
    if (result == 0) snprintf(id->internal, sizeof id->internal, "id %d", ++ids);
    return fake__leave(result);
}

static void check_config(const lofi__nccl_config *config)
{
    if (config == NULL || config->size != sizeof *config || config->magic != 0xcafebeefu)
        misuse("no config");
    else if (config->blocking != 0)
        misuse("a blocking communicator");
    else if (config->split_share == 1)
        misuse("children that share what their parent has");
}

lofi__nccl_result ncclCommInitRankConfig(lofi__nccl_comm *comm, int ranks, lofi__nccl_id id,
                                         int rank, lofi__nccl_config *config)
{
    lofi__nccl_result result = fake__enter("ncclCommInitRankConfig");
    if (result == 0) {
        struct world *world = find_world(id.internal, ranks);
        check_config(config);
        if (world->count != ranks || rank < 0 || rank >= ranks) misuse("another rank count");
        *comm = join(world, rank);
        (*comm)->state = INIT;
        result = LOFI__NCCL_IN_PROGRESS;
    }
    return fake__leave(result);
}

lofi__nccl_result ncclCommSplit(lofi__nccl_comm comm, int color, int key, lofi__nccl_comm *made,
                                lofi__nccl_config *config)
{
    lofi__nccl_result result = fake__enter("ncclCommSplit");
    if (result == 0) result = check_ready(comm, "a split of a busy communicator");
    if (result == 0) {
        check_config(config);
        comm->state = SPLIT;
        comm->child.color = color;
        comm->child.key = key;
        comm->child.made = made;
        *made = NULL;
        result = LOFI__NCCL_IN_PROGRESS;
    }
    return fake__leave(result);
}

lofi__nccl_result ncclCommFinalize(lofi__nccl_comm comm)
{
    lofi__nccl_result result = fake__enter("ncclCommFinalize");
    if (result == 0) result = check_ready(comm, "a busy communicator is finalized");
    if (result == 0) {
        comm->state = FINALIZE;
        result = LOFI__NCCL_IN_PROGRESS;
    }
    return fake__leave(result);
}

lofi__nccl_result ncclCommDestroy(lofi__nccl_comm comm)
{
    lofi__nccl_result result = fake__enter("ncclCommDestroy");
    if (comm->state != FINALIZED) misuse("destroyed before it was finalized");
    leave(comm);
    return fake__leave(result);
}

lofi__nccl_result ncclCommAbort(lofi__nccl_comm comm)
{
    lofi__nccl_result result = fake__enter("ncclCommAbort");
    comm->world->is_aborted = 1;
    leave(comm);
    return fake__leave(result);
}

lofi__nccl_result ncclCommGetAsyncError(lofi__nccl_comm comm, lofi__nccl_result *error)
{
    lofi__nccl_result result = fake__enter("ncclCommGetAsyncError");
    if (result == 0) *error = progress(comm);
    return fake__leave(result);
}

lofi__nccl_result ncclCommCount(lofi__nccl_comm comm, int *count)
{
    lofi__nccl_result result = fake__enter("ncclCommCount");
    if (result == 0) *count = comm->world->count;
    return fake__leave(result);
}

lofi__nccl_result ncclCommUserRank(lofi__nccl_comm comm, int *rank)
{
    lofi__nccl_result result = fake__enter("ncclCommUserRank");
    if (result == 0) *rank = comm->rank;
    return fake__leave(result);
}

lofi__nccl_result ncclRedOpCreatePreMulSum(lofi__nccl_op *op, void *scalar, lofi__nccl_type type,
                                           int residence, lofi__nccl_comm comm)
{
    lofi__nccl_result result = fake__enter("ncclRedOpCreatePreMulSum");
    if (result == 0) result = check_ready(comm, "an operation of a busy communicator");
    if (result == 0 && residence != LOFI__NCCL_SCALAR_HOST) result = misuse("where is the scalar?");
    int i = 0;
    while (result == 0 && i < 8 && comm->ops[i].is_used)
        i++;
    if (i == 8) result = misuse("operations are not given back");
    if (result == 0) {
        comm->ops[i].is_used = 1;
        memcpy(comm->ops[i].scalar, scalar, fake__type_bytes(type));
        held.ops++;
        *op = FAKE__FIRST_OP + i;
    }
    return fake__leave(result);
}

lofi__nccl_result ncclRedOpDestroy(lofi__nccl_op op, lofi__nccl_comm comm)
{
    const int i = op - FAKE__FIRST_OP;
    lofi__nccl_result result = fake__enter("ncclRedOpDestroy");
    if (result == 0) result = check_ready(comm, "an operation of a busy communicator ends");
    if (result == 0 && (i < 0 || i >= 8 || !comm->ops[i].is_used))
        result = misuse("no such operation");
    if (result == 0) {
        comm->ops[i].is_used = 0;
        held.ops--;
    }
    return fake__leave(result);
}

/* ---- groups and collectives ---- */

static _Thread_local int depth;
static _Thread_local struct ncclComm *group_comm;
static _Thread_local struct part *group;

static lofi__nccl_result begin(struct ncclComm *comm, struct part *part)
{
    part->number = comm->rounds++;
    part->rank = comm->rank;
    part->world = comm->world;
    part->world->references++;
    comm->part = part;
    comm->state = ENQUEUE;
    return LOFI__NCCL_IN_PROGRESS;
}

lofi__nccl_result ncclGroupStart(void)
{
    lofi__nccl_result result = fake__enter("ncclGroupStart");
    if (result == 0) depth++;
    return fake__leave(result);
}

lofi__nccl_result ncclGroupEnd(void)
{
    lofi__nccl_result result = fake__enter("ncclGroupEnd");
    if (--depth < 0) misuse("the end of no group");
    if (result == 0 && group != NULL)
        result = begin(group_comm, group);
    else
        free(group);
    group = NULL;
    group_comm = NULL;
    return fake__leave(result);
}

/* `call` begins in ncclGroupEnd, or now. */
static lofi__nccl_result add(struct ncclComm *comm, lofi__cu_stream stream, struct call call)
{
    lofi__nccl_result result = fake__enter(call.name);
    if (result == 0) result = check_ready(comm, call.name);
    if (result != 0) return fake__leave(result);
    if (call.op >= FAKE__FIRST_OP) {
        const struct op *op = &comm->ops[call.op - FAKE__FIRST_OP];
        if (!op->is_used) misuse("an operation that is gone");
        memcpy(call.scalar, op->scalar, sizeof call.scalar);
        call.op = FAKE__FIRST_OP;
    }
    if (group == NULL) group = allocate(sizeof *group);
    if (group_comm != NULL && group_comm != comm) misuse("a group of two communicators");
    if (group->count == FAKE__CALLS_MOST) abort();
    group_comm = comm;
    group->stream = stream;
    group->call[group->count++] = call;
    if (depth == 0) {
        result = begin(comm, group);
        group = NULL;
        group_comm = NULL;
    }
    return fake__leave(result);
}

lofi__nccl_result ncclAllReduce(const void *in, void *out, size_t count, lofi__nccl_type type,
                                lofi__nccl_op op, lofi__nccl_comm comm, lofi__cu_stream stream)
{
    return add(comm, stream,
               (struct call){"ncclAllReduce", in, out, count, type, op, FAKE__ALL, {0}});
}

lofi__nccl_result ncclReduce(const void *in, void *out, size_t count, lofi__nccl_type type,
                             lofi__nccl_op op, int root, lofi__nccl_comm comm,
                             lofi__cu_stream stream)
{
    return add(comm, stream, (struct call){"ncclReduce", in, out, count, type, op, root, {0}});
}

lofi__nccl_result ncclBroadcast(const void *in, void *out, size_t count, lofi__nccl_type type,
                                int root, lofi__nccl_comm comm, lofi__cu_stream stream)
{
    return add(comm, stream, (struct call){"ncclBroadcast", in, out, count, type, 0, root, {0}});
}

lofi__nccl_result ncclAllGather(const void *in, void *out, size_t count, lofi__nccl_type type,
                                lofi__nccl_comm comm, lofi__cu_stream stream)
{
    return add(comm, stream,
               (struct call){"ncclAllGather", in, out, count, type, 0, FAKE__ALL, {0}});
}

lofi__nccl_result ncclReduceScatter(const void *in, void *out, size_t count, lofi__nccl_type type,
                                    lofi__nccl_op op, lofi__nccl_comm comm, lofi__cu_stream stream)
{
    return add(comm, stream,
               (struct call){"ncclReduceScatter", in, out, count, type, op, FAKE__ALL, {0}});
}

lofi__nccl_result ncclSend(const void *in, size_t count, lofi__nccl_type type, int to,
                           lofi__nccl_comm comm, lofi__cu_stream stream)
{
    return add(comm, stream, (struct call){"ncclSend", in, NULL, count, type, 0, to, {0}});
}

lofi__nccl_result ncclRecv(void *out, size_t count, lofi__nccl_type type, int from,
                           lofi__nccl_comm comm, lofi__cu_stream stream)
{
    return add(comm, stream, (struct call){"ncclRecv", NULL, out, count, type, 0, from, {0}});
}

/* ---- for tests ---- */

void fake__note_mismatch(void)
{
    held.mismatches++;
}

void fake_nccl_break(lofi__nccl_result error)
{
    fake__lock();
    for (struct world *world = worlds; world != NULL; world = world->next)
        for (int rank = 0; rank < world->count; rank++)
            if (world->member[rank] != NULL) world->member[rank]->error = error;
    fake__unlock();
}

void fake_nccl_hold_finalize(int is_on)
{
    fake__lock();
    holds_finalize = is_on;
    fake__unlock();
}

struct fake_nccl_held fake_nccl_held(void)
{
    fake__lock();
    const struct fake_nccl_held now = held;
    fake__unlock();
    return now;
}
