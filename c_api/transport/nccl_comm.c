/* SPDX-License-Identifier: MIT */
/*
 * A communicator of NCCL: made, watched and ended.
 *
 * Ranks meet in one allgather, in which each says whether it can take part, and the first one gives
 * NCCL's id: a rank without a GPU is everyone's error, and nobody waits for it inside NCCL. Nothing
 * below waits without a deadline, but ncclCommAbort.
 */
#define _GNU_SOURCE
#include "transport/nccl_comm.h"

#include "core/mem.h"
#include "transport/clock.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

#define PROBLEM_BYTES 512
#define HELLO_MAGIC UINT32_C(0x6c63636e) /* "nccl" */

/* A poll comes soon after the last one, and later the longer it lasts: a small collective takes
 * tens of microseconds, and a core that polls is one that does not compute. */
#define YIELD_NS INT64_C(50000)
#define NAP_LEAST_NS INT64_C(10000)
#define NAP_MOST_NS INT64_C(200000)

/* How long the end of a communicator may wait for the others. */
#define CLOSE_MS 5000

/* ---- the device ------------------------------------------------------------------------------ */

lofi_status lofi__nccl_enter(const struct lofi__nccl *nccl)
{
    return lofi__driver_check(nccl->cuda, nccl->cuda->CtxPushCurrent(nccl->context),
                              "the device's context");
}

void lofi__nccl_leave(const struct lofi__nccl *nccl)
{
    lofi__cu_context own = NULL;
    nccl->cuda->CtxPopCurrent(&own);
}

static lofi_status choose_device(struct lofi__nccl *nccl, int ordinal)
{
    const struct lofi__driver *cuda = nccl->cuda;
    int count = 0;

    if (ordinal == -1 && cuda->CtxGetDevice(&nccl->device) == 0) return LOFI_OK;
    if (ordinal == -1) ordinal = 0;
    lofi_status st = lofi__driver_check(cuda, cuda->DeviceGetCount(&count), "counting devices");
    if (st != LOFI_OK) return st;
    if (ordinal < 0 || ordinal >= count) {
        lofi_set_error("device %d: CUDA has %d, which are counted from 0; -1 is the thread's own",
                       ordinal, count);
        return LOFI_INVALID;
    }
    return lofi__driver_check(cuda, cuda->DeviceGet(&nccl->device, ordinal), "the device");
}

static lofi_status make_stream(struct lofi__nccl *nccl)
{
    const struct lofi__driver *cuda = nccl->cuda;

    lofi_status st = lofi__driver_check(
        cuda, cuda->StreamCreate(&nccl->stream, LOFI__CU_STREAM_NON_BLOCKING), "making a stream");
    if (st == LOFI_OK)
        st = lofi__driver_check(cuda, cuda->MemAlloc(&nccl->word, sizeof(int32_t)),
                                "memory for barriers");
    if (st == LOFI_OK)
        st = lofi__driver_check(cuda,
                                cuda->MemsetD8Async(nccl->word, 0, sizeof(int32_t), nccl->stream),
                                "memory for barriers");
    return st;
}

/* Does all that this rank can do by itself, before it meets the others. */
static lofi_status prepare(struct lofi__nccl *nccl, const lofi_comm_options *options)
{
    lofi_status st = lofi__driver_get(&nccl->cuda);
    if (st == LOFI_OK) st = lofi__nccl_library_get(&nccl->library);
    if (st == LOFI_OK) st = choose_device(nccl, options->device);
    if (st == LOFI_OK)
        st = lofi__driver_check(nccl->cuda,
                                nccl->cuda->DevicePrimaryCtxRetain(&nccl->context, nccl->device),
                                "the device's context");
    if (st != LOFI_OK) return st;
    nccl->has_device = 1;
    st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    st = make_stream(nccl);
    lofi__nccl_leave(nccl);
    return st;
}

lofi_status lofi__nccl_mark(struct lofi__nccl *nccl, lofi__cu_event *event)
{
    const struct lofi__driver *cuda = nccl->cuda;
    lofi__cu_event made = NULL;
    lofi_status st = LOFI_OK;

    pthread_mutex_lock(&nccl->lock);
    if (nccl->spare_count > 0) made = nccl->spare[--nccl->spare_count];
    pthread_mutex_unlock(&nccl->lock);
    if (made == NULL)
        st = lofi__driver_check(cuda, cuda->EventCreate(&made, LOFI__CU_EVENT_DISABLE_TIMING),
                                "making an event");
    if (st != LOFI_OK) return st;
    st = lofi__driver_check(cuda, cuda->EventRecord(made, nccl->callers_stream),
                            "an event on the stream of the options");
    if (st == LOFI_OK)
        *event = made;
    else
        lofi__nccl_unmark(nccl, made);
    return st;
}

void lofi__nccl_unmark(struct lofi__nccl *nccl, lofi__cu_event event)
{
    pthread_mutex_lock(&nccl->lock);
    const int keep = nccl->spare_count < LOFI__NCCL_SPARE_EVENTS;
    if (keep) nccl->spare[nccl->spare_count++] = event;
    pthread_mutex_unlock(&nccl->lock);
    if (!keep) nccl->cuda->EventDestroy(event);
}

lofi_status lofi__nccl_check_data(const struct lofi__nccl *nccl, const char *what, const void *data)
{
    unsigned type = 0;

    if (nccl->cuda->PointerGetAttribute(&type, LOFI__CU_POINTER_MEMORY_TYPE,
                                        (lofi__cu_address)(uintptr_t)data) == 0 &&
        type == LOFI__CU_MEMORY_DEVICE)
        return LOFI_OK;
    lofi_set_error("%s at %p is not in device memory, which is all that the transport nccl moves",
                   what, data);
    return LOFI_INVALID;
}

/* ---- calls of NCCL --------------------------------------------------------------------------- */

/* The lock is held. */
static void drop(struct lofi__nccl *nccl)
{
    if (nccl->comm != NULL) nccl->library->CommAbort(nccl->comm);
    nccl->comm = NULL;
    nccl->aborted = 1;
}

void lofi__nccl_abort(void *state)
{
    struct lofi__nccl *nccl = state;

    const int entered = lofi__nccl_enter(nccl) == LOFI_OK;
    pthread_mutex_lock(&nccl->lock);
    drop(nccl);
    pthread_mutex_unlock(&nccl->lock);
    if (entered) lofi__nccl_leave(nccl);
}

lofi_status lofi__nccl_lock(struct lofi__nccl *nccl, const char *where)
{
    pthread_mutex_lock(&nccl->lock);
    if (!nccl->aborted) return LOFI_OK;
    pthread_mutex_unlock(&nccl->lock);
    lofi_set_error("%s: rank %d has aborted the communicator", where,
                   nccl->members->label[nccl->members->rank]);
    return LOFI_PEER_LOST;
}

lofi_status lofi__nccl_unlock(struct lofi__nccl *nccl, const char *where, lofi__nccl_result result)
{
    if (result != 0 && result != LOFI__NCCL_IN_PROGRESS) {
        const char *more = nccl->library->GetLastError(nccl->comm);
        const int has_more = more != NULL && more[0] != '\0';
        lofi_set_error("%s: NCCL says on rank %d: %s%s%s (NCCL_DEBUG=WARN prints more)", where,
                       nccl->members->label[nccl->members->rank],
                       nccl->library->GetErrorString(result), has_more ? ": " : "",
                       has_more ? more : "");
        drop(nccl);
    }
    pthread_mutex_unlock(&nccl->lock);
    if (result == 0 || result == LOFI__NCCL_IN_PROGRESS) return LOFI_OK;
    return result == LOFI__NCCL_REMOTE_ERROR ? LOFI_PEER_LOST : LOFI_SYSTEM;
}

/* ---- waiting --------------------------------------------------------------------------------- */

static void nap(int64_t began_ns)
{
    const int64_t waited = lofi__now_ns() - began_ns;
    struct timespec time = {0, NAP_LEAST_NS};

    if (waited < YIELD_NS) {
        sched_yield();
        return;
    }
    if (waited / 16 > NAP_LEAST_NS) time.tv_nsec = (long)(waited / 16);
    if (time.tv_nsec > NAP_MOST_NS) time.tv_nsec = NAP_MOST_NS;
    nanosleep(&time, NULL);
}

/* Asks NCCL how it goes: LOFI_IN_PROGRESS if it is not done. */
static lofi_status ask(struct lofi__nccl *nccl, const char *where)
{
    lofi__nccl_result state = 0;

    lofi_status st = lofi__nccl_lock(nccl, where);
    if (st != LOFI_OK) return st;
    lofi__nccl_result result = nccl->library->CommGetAsyncError(nccl->comm, &state);
    if (result == 0) result = state;
    st = lofi__nccl_unlock(nccl, where, result);
    return st == LOFI_OK && result == LOFI__NCCL_IN_PROGRESS ? LOFI_IN_PROGRESS : st;
}

static lofi_status give_up(struct lofi__nccl *nccl, const char *where)
{
    lofi__nccl_abort(nccl);
    lofi_set_error("%s: Timed out waiting: not done in time on rank %d: another rank did not come, "
                   "or is in another collective",
                   where, nccl->members->label[nccl->members->rank]);
    return LOFI_TIMED_OUT;
}

lofi_status lofi__nccl_wait(struct lofi__nccl *nccl, const char *where, lofi__cu_stream stream,
                            int64_t deadline_ns)
{
    const int64_t began_ns = lofi__now_ns();
    int is_enqueued = 0; /* 0: NCCL may still be about to put work on the stream */

    for (;;) {
        int is_done = 0;
        if (is_enqueued) {
            const lofi__cu_result result = nccl->cuda->StreamQuery(stream);
            is_done = result != LOFI__CU_NOT_READY;
            lofi_status st = lofi__driver_check(nccl->cuda, is_done ? result : 0, where);
            if (st != LOFI_OK) {
                lofi__nccl_abort(nccl);
                return st;
            }
        }
        /* NCCL is asked also when the stream is done: after an error its kernels end early. */
        lofi_status st = ask(nccl, where);
        if (st == LOFI_OK && (is_done || stream == NULL)) return LOFI_OK;
        if (st != LOFI_OK && st != LOFI_IN_PROGRESS) return st;
        if (lofi__now_ns() >= deadline_ns) return give_up(nccl, where);
        if (st == LOFI_OK && !is_enqueued)
            is_enqueued = 1;
        else
            nap(began_ns);
    }
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Lets NCCL end what it has, for a while: ncclCommDestroy would wait for it without a limit. */
static void finish(struct lofi__nccl *nccl)
{
    static const char where[] = "the end of a communicator";
    const int limit_ms = nccl->timeout_ms < CLOSE_MS ? nccl->timeout_ms : CLOSE_MS;

    if (lofi__nccl_lock(nccl, where) != LOFI_OK) return;
    const lofi__nccl_result result = nccl->library->CommFinalize(nccl->comm);
    if (lofi__nccl_unlock(nccl, where, result) != LOFI_OK) return;
    if (lofi__nccl_wait(nccl, where, NULL, lofi__now_ns() + INT64_C(1000000) * limit_ms) != LOFI_OK)
        return;
    pthread_mutex_lock(&nccl->lock);
    if (nccl->comm != NULL) nccl->library->CommDestroy(nccl->comm);
    nccl->comm = NULL;
    pthread_mutex_unlock(&nccl->lock);
}

static void free_device(struct lofi__nccl *nccl)
{
    const struct lofi__driver *cuda = nccl->cuda;

    if (lofi__nccl_enter(nccl) == LOFI_OK) {
        if (nccl->comm != NULL) finish(nccl);
        for (int i = 0; i < nccl->spare_count; i++)
            cuda->EventDestroy(nccl->spare[i]);
        if (nccl->word != 0) cuda->MemFree(nccl->word);
        if (nccl->stream != NULL) cuda->StreamDestroy(nccl->stream);
        lofi__nccl_leave(nccl);
    }
    cuda->DevicePrimaryCtxRelease(nccl->device);
}

/* A forked child can neither use nor end what its parent has in CUDA and NCCL. */
void lofi__nccl_close(void *state, int forked)
{
    struct lofi__nccl *nccl = state;

    if (!forked && nccl->has_device) free_device(nccl);
    if (!forked) pthread_mutex_destroy(&nccl->lock);
    lofi__mem_destroy(nccl);
}

/* ---- the beginning --------------------------------------------------------------------------- */

struct hello {
    uint32_t magic;
    int32_t status; /* of what this rank prepared */
    char problem[PROBLEM_BYTES];
    lofi__nccl_id id; /* the first rank's */
};

static lofi_status compare(const struct hello *all, const struct lofi__members *members)
{
    for (int rank = 0; rank < members->count; rank++) {
        if (all[rank].magic != HELLO_MAGIC ||
            memchr(all[rank].problem, '\0', PROBLEM_BYTES) == NULL) {
            lofi_set_error("rank %d sent no hello of the transport nccl: does the allgather return "
                           "the bytes of every rank as they were given?",
                           members->label[rank]);
            return LOFI_CORRUPT;
        }
        if (all[rank].status == LOFI_OK) continue;
        lofi_set_error("rank %d: %s", members->label[rank], all[rank].problem);
        return (lofi_status)all[rank].status;
    }
    return LOFI_OK;
}

/* `prepared`: what this rank's own part has come to. On success all ranks have the id. */
static lofi_status meet(struct lofi__nccl *nccl, lofi_status prepared, lofi_allgather_fn allgather,
                        void *ctx, lofi__nccl_id *id)
{
    struct hello mine;
    struct hello *all = lofi__mem_create((size_t)nccl->members->count, sizeof *all);

    if (all == NULL) return LOFI_NO_MEMORY;
    memset(&mine, 0, sizeof mine);
    mine.magic = HELLO_MAGIC;
    if (prepared == LOFI_OK && nccl->members->rank == 0) {
        prepared = lofi__nccl_lock(nccl, "an id of NCCL");
        if (prepared == LOFI_OK)
            prepared =
                lofi__nccl_unlock(nccl, "an id of NCCL", nccl->library->GetUniqueId(&mine.id));
    }
    mine.status = prepared;
    if (prepared != LOFI_OK) snprintf(mine.problem, sizeof mine.problem, "%s", lofi_last_error());
    lofi_status st = allgather(ctx, &mine, sizeof mine, all);
    if (st == LOFI_SYSTEM) st = LOFI_PEER_LOST; /* SYSTEM is for what this rank has of its own */
    if (st == LOFI_OK) st = compare(all, nccl->members);
    *id = all[0].id;
    lofi__mem_destroy(all);
    return st;
}

static lofi_status init(struct lofi__nccl *nccl, const char *where, lofi__nccl_id id)
{
    lofi__nccl_config config = LOFI__NCCL_CONFIG_INIT;

    config.blocking = 0;
    lofi_status st = lofi__nccl_lock(nccl, where);
    if (st != LOFI_OK) return st;
    return lofi__nccl_unlock(nccl, where,
                             nccl->library->CommInitRankConfig(&nccl->comm, nccl->members->count,
                                                               id, nccl->members->rank, &config));
}

/* NCCL writes `nccl->comm` before it is done with the parent, on a thread of its own. Nothing is
 * shared (split_share): the abort of one would end the work of the others, without an error, and
 * NCCL wants one at a time to be in a collective then. */
static lofi_status split(struct lofi__nccl *nccl, const char *where, struct lofi__nccl *parent,
                         int color, int64_t deadline_ns)
{
    lofi__nccl_config config = LOFI__NCCL_CONFIG_INIT;

    config.blocking = 0;
    lofi_status st = lofi__nccl_lock(parent, where);
    if (st != LOFI_OK) return st;
    st = lofi__nccl_unlock(
        parent, where,
        parent->library->CommSplit(parent->comm, color, nccl->members->rank, &nccl->comm, &config));
    if (st == LOFI_OK) st = lofi__nccl_wait(parent, where, NULL, deadline_ns);
    if (st == LOFI_OK && nccl->comm == NULL) {
        lofi_set_error("%s: NCCL has made no communicator out of the parent", where);
        st = LOFI_SYSTEM;
    }
    return st;
}

static lofi_status check_place(struct lofi__nccl *nccl, const char *where)
{
    const struct lofi__members *members = nccl->members;
    int rank = -1, count = -1;

    lofi_status st = lofi__nccl_lock(nccl, where);
    if (st != LOFI_OK) return st;
    lofi__nccl_result result = nccl->library->CommUserRank(nccl->comm, &rank);
    if (result == 0) result = nccl->library->CommCount(nccl->comm, &count);
    st = lofi__nccl_unlock(nccl, where, result);
    if (st != LOFI_OK || (rank == members->rank && count == members->count)) return st;
    lofi_set_error("%s: NCCL has made rank %d of %d out of the parent, the options say rank %d of "
                   "%d: do all ranks of the parent give the color of their own communicator, and "
                   "their rank in it?",
                   where, rank, count, members->rank, members->count);
    return LOFI_INVALID;
}

static lofi_status make(struct lofi__nccl *nccl, const lofi_comm_options *options,
                        struct lofi__nccl *parent, lofi_allgather_fn allgather, void *ctx)
{
    const char *name = nccl->members->name;
    lofi__nccl_id id = {{0}};
    char where[LOFI__NAME_BYTES + 32];

    snprintf(where, sizeof where, "making %s", name[0] != '\0' ? name : "a communicator");
    lofi_status st = prepare(nccl, options);
    if (parent == NULL) st = meet(nccl, st, allgather, ctx, &id);
    if (st == LOFI_OK) st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    const int64_t deadline_ns = lofi__after_ms(nccl->timeout_ms);
    st = parent == NULL ? init(nccl, where, id)
                        : split(nccl, where, parent, options->color, deadline_ns);
    if (st == LOFI_OK) st = lofi__nccl_wait(nccl, where, NULL, deadline_ns);
    if (st != LOFI_OK)
        lofi__nccl_abort(nccl);
    else
        st = check_place(nccl, where); /* not aborted then: others are to see it for themselves */
    lofi__nccl_leave(nccl);
    return st;
}

lofi_status lofi__nccl_open(const struct lofi__members *members, const lofi_comm_options *options,
                            void *parent, lofi_allgather_fn allgather, void *ctx, void **state)
{
    struct lofi__nccl *nccl = lofi__mem_create(1, sizeof *nccl);

    if (nccl == NULL) return LOFI_NO_MEMORY;
    const int error = pthread_mutex_init(&nccl->lock, NULL);
    if (error != 0) {
        lofi_set_error("a communicator's lock can't be made: %s", strerror(error));
        lofi__mem_destroy(nccl);
        return LOFI_SYSTEM;
    }
    nccl->members = members;
    nccl->timeout_ms = options->timeout_ms;
    nccl->callers_stream = options->stream;
    lofi_status st = make(nccl, options, parent, allgather, ctx);
    if (st == LOFI_OK)
        *state = nccl;
    else
        lofi__nccl_close(nccl, 0);
    return st;
}
