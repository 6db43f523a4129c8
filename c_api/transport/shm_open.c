/* SPDX-License-Identifier: MIT */
/*
 * Opening is a conversation: who and where are you; here is the memory; I have mapped it. After
 * each round every rank knows what every other said, so all take the same way: on, to the next
 * kind of memory, or to the same error.
 */
#define _GNU_SOURCE
#include "transport/shm_open.h"

#include "core/mem.h"
#include "transport/shm_peer.h"
#include "transport/shm_wait.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Chosen by measurement (tests/c/measure_comm.c): a chunk of its own and one of each other rank
 * stay in a core's second cache. More ranks than cores take turns on them, and each turn costs
 * two switches of processes, so that there larger chunks pay. */
#define SLOT_BYTES ((size_t)256 << 10)
#define SLOT_BYTES_CROWDED ((size_t)1 << 20)

#define HELLO_MAGIC UINT32_C(0x68736f6c) /* "losh" */

/* First round. The first three fields keep their places for ever. */
struct hello {
    uint32_t magic;
    uint32_t layout;
    uint32_t version;
    int32_t rank, count;
    int32_t pid;
    uint64_t slot_bytes; /* asked for; 0: to be chosen */
    cpu_set_t cores;     /* that this process may use: often each rank has been given its own */
    struct lofi__host host;
    char problem[256]; /* "": none */
};

/* Second round: the first rank's memory. Third round: what became of it. */
struct answer {
    int32_t status;
    int32_t reserved;
    struct lofi__shm_place place;
    char problem[256];
};

static void keep_error(char *problem, size_t bytes)
{
    snprintf(problem, bytes, "%.*s", (int)bytes - 1, lofi_last_error());
}

static void fill_hello(struct hello *hello, const struct lofi__members *members, size_t slot_bytes)
{
    memset(hello, 0, sizeof *hello);
    hello->magic = HELLO_MAGIC;
    hello->layout = LOFI__SHM_LAYOUT;
    hello->version = (uint32_t)lofi_version();
    hello->rank = members->rank;
    hello->count = members->count;
    hello->pid = (int32_t)getpid();
    hello->slot_bytes = slot_bytes;
    /* It fails on machines of more than 1024 cores, which are not soon crowded. */
    if (sched_getaffinity(0, sizeof hello->cores, &hello->cores) != 0)
        memset(&hello->cores, 0xff, sizeof hello->cores);
    if (lofi__host_fill(&hello->host) != LOFI_OK) keep_error(hello->problem, sizeof hello->problem);
}

static lofi_status compare(const struct hello *all, int rank, const struct lofi__members *members)
{
    const struct hello *hello = &all[rank];
    const int label = members->label[rank], first = members->label[0];

    if (hello->magic != HELLO_MAGIC || hello->layout != LOFI__SHM_LAYOUT ||
        hello->version != all[0].version) {
        lofi_set_error("rank %d runs another release of lofi than rank %d (or is of another byte "
                       "order): install the same for every rank",
                       label, first);
        return LOFI_ABI;
    }
    if (hello->rank != rank || hello->count != members->count ||
        hello->slot_bytes != all[0].slot_bytes) {
        lofi_set_error("rank %d opens rank %d of %d with slots of %llu bytes, rank %d one of %d "
                       "with %llu: all ranks must give the same options",
                       label, hello->rank, hello->count, (unsigned long long)hello->slot_bytes,
                       first, all[0].count, (unsigned long long)all[0].slot_bytes);
        return LOFI_INVALID;
    }
    if (hello->problem[0] != '\0') {
        lofi_set_error("rank %d: %.255s", label, hello->problem);
        return LOFI_SYSTEM;
    }
    const char *difference = lofi__host_difference(&hello->host, &all[0].host);
    if (difference == NULL) return LOFI_OK;
    lofi_set_error("ranks %d and %d do not share a machine: another %s", first, label, difference);
    return LOFI_UNSUPPORTED;
}

/* SYSTEM is what the ranks agree on when the memory fails them. The bootstrap's own failure, which
 * is this rank's alone, must not look like it. */
static lofi_status tell(lofi_allgather_fn allgather, void *ctx, const void *mine, size_t bytes,
                        void *all)
{
    lofi_status st = allgather(ctx, mine, bytes, all);
    return st == LOFI_SYSTEM ? LOFI_PEER_LOST : st;
}

/* The first problem that a rank has, as the error of all. */
static lofi_status first_problem(const struct answer *all, const struct lofi__members *members)
{
    for (int rank = 0; rank < members->count; rank++) {
        if (all[rank].status == LOFI_OK) continue;
        lofi_set_error("rank %d: %.255s", members->label[rank], all[rank].problem);
        return (lofi_status)all[rank].status;
    }
    return LOFI_OK;
}

/* Second and third round with one kind of memory. `agreed`: all ranks know the status. */
static lofi_status share(struct lofi__shm *shm, int kind, size_t slot_bytes,
                         lofi_allgather_fn allgather, void *ctx, struct answer *all, int *agreed)
{
    const struct lofi__members *members = shm->members;
    struct answer mine;
    lofi_status st = LOFI_OK;

    *agreed = 0;
    memset(&mine, 0, sizeof mine);
    if (members->rank == 0)
        st = lofi__segment_create(&shm->segment, kind, members->count, slot_bytes);
    mine.status = st;
    mine.place = shm->segment.place;
    if (st != LOFI_OK) keep_error(mine.problem, sizeof mine.problem);
    st = tell(allgather, ctx, &mine, sizeof mine, all);
    if (st != LOFI_OK) return st;
    *agreed = 1;
    st = first_problem(all, members);
    if (st != LOFI_OK) return st;

    *agreed = 0;
    if (members->rank != 0) st = lofi__segment_open(&shm->segment, &all[0].place, members->count);
    mine.status = st;
    if (st != LOFI_OK) keep_error(mine.problem, sizeof mine.problem);
    st = tell(allgather, ctx, &mine, sizeof mine, all);
    if (st != LOFI_OK) return st;
    *agreed = 1;
    return first_problem(all, members);
}

/* A rank that waits for this one, now or later, looks at `left` between two slices. */
static void leave(struct lofi__shm *shm)
{
    if (shm->segment.header != NULL)
        atomic_store(&lofi__segment_rank(&shm->segment, shm->members->rank)->left, 1);
    lofi__segment_close(&shm->segment);
}

static lofi_status share_any(struct lofi__shm *shm, unsigned kinds, size_t slot_bytes,
                             lofi_allgather_fn allgather, void *ctx)
{
    lofi_status st = LOFI_SYSTEM;
    int agreed = 1;
    struct answer *all = lofi__mem_create((size_t)shm->members->count, sizeof *all);

    if (all == NULL) return LOFI_NO_MEMORY;
    for (int kind = 0; kind < LOFI__SHM_KINDS && agreed && st == LOFI_SYSTEM; kind++) {
        if ((kinds >> kind & 1) == 0) continue;
        st = share(shm, kind, slot_bytes, allgather, ctx, all, &agreed);
        /* Nobody comes to map it any more, whatever became of it. */
        if (st != LOFI_OK)
            leave(shm);
        else
            lofi__segment_seal(&shm->segment);
    }
    lofi__mem_destroy(all);
    return st;
}

/* More ranks than cores that any of them may use. */
static int is_crowded(const struct hello *all, int count)
{
    cpu_set_t cores;

    CPU_ZERO(&cores);
    for (int rank = 0; rank < count; rank++)
        CPU_OR(&cores, &cores, &all[rank].cores);
    return count > CPU_COUNT(&cores);
}

static lofi_status create(const struct lofi__members *members, struct lofi__shm **out)
{
    struct lofi__shm *shm = lofi__mem_create(1, sizeof *shm);

    if (shm == NULL) return LOFI_NO_MEMORY;
    shm->members = members;
    shm->segment.fd = -1;
    shm->peer = lofi__mem_create((size_t)members->count, sizeof *shm->peer);
    shm->operand = lofi__mem_create((size_t)members->count, sizeof *shm->operand);
    *out = shm;
    if (shm->peer == NULL || shm->operand == NULL) {
        lofi__shm_close(shm, 1);
        return LOFI_NO_MEMORY;
    }
    for (int rank = 0; rank < members->count; rank++)
        shm->peer[rank].watch = -1;
    return LOFI_OK;
}

lofi_status lofi__shm_open_kinds(const struct lofi__members *members,
                                 const lofi_comm_options *options, lofi_allgather_fn allgather,
                                 void *ctx, unsigned kinds, void **state)
{
    struct lofi__shm *shm = NULL;
    struct hello mine;
    struct hello *all = lofi__mem_create((size_t)members->count, sizeof *all);

    if (all == NULL) return LOFI_NO_MEMORY;
    fill_hello(&mine, members, options->slot_bytes);
    lofi_status st = tell(allgather, ctx, &mine, sizeof mine, all);
    for (int rank = 0; rank < members->count && st == LOFI_OK; rank++)
        st = compare(all, rank, members);
    if (st == LOFI_OK) st = create(members, &shm);
    if (st != LOFI_OK) goto free_all;

    shm->crowded = is_crowded(all, members->count);
    const size_t chosen = shm->crowded ? SLOT_BYTES_CROWDED : SLOT_BYTES;
    /* Watched from before the memory is mapped by all: a pidfd is of the process that said hello,
     * which waits for this rank until then. */
    for (int rank = 0; rank < members->count; rank++) {
        shm->peer[rank].pid = all[rank].pid;
        shm->peer[rank].watch = lofi__peer_watch(all[rank].pid);
    }
    st = share_any(shm, kinds, mine.slot_bytes != 0 ? mine.slot_bytes : chosen, allgather, ctx);
    if (st == LOFI_OK)
        *state = shm;
    else
        lofi__shm_close(shm, 1);
free_all:
    lofi__mem_destroy(all);
    return st;
}

lofi_status lofi__shm_open(const struct lofi__members *members, const lofi_comm_options *options,
                           lofi_allgather_fn allgather, void *ctx, void **state)
{
    return lofi__shm_open_kinds(members, options, allgather, ctx, ~0u, state);
}

void lofi__shm_close(void *state, int forked)
{
    struct lofi__shm *shm = state;

    /* The memory of a parent is not mapped in its children: see MADV_DONTFORK. */
    if (!forked) leave(shm);
    for (int rank = 0; shm->peer != NULL && rank < shm->members->count; rank++)
        if (shm->peer[rank].watch >= 0) close(shm->peer[rank].watch);
    lofi__mem_destroy(shm->operand);
    lofi__mem_destroy(shm->peer);
    lofi__mem_destroy(shm);
}
