/* SPDX-License-Identifier: MIT */
/* What the files of the fake NCCL share. */
#ifndef LOFI_TESTS_FAKE_NCCL_INSIDE_H
#define LOFI_TESTS_FAKE_NCCL_INSIDE_H

#include "fake/inside.h"
#include "fake/nccl.h"

#define FAKE__RANKS_MOST 16
#define FAKE__CALLS_MOST (2 * FAKE__RANKS_MOST)
#define FAKE__FIRST_OP 5 /* of ncclRedOpCreatePreMulSum */
#define FAKE__ALL (-1)

struct call {
    const char *name;
    const void *in;
    void *out;
    size_t count;
    lofi__nccl_type type;
    lofi__nccl_op op;
    int peer; /* or root, or FAKE__ALL */
    char scalar[8];
};

/* What one rank puts on its stream at once: a call or a group of them. */
struct part {
    struct world *world;
    uint64_t number; /* the how manieth of its rank */
    int rank;
    lofi__cu_stream stream;
    int is_asked_for, has_come;
    int count;
    struct call call[FAKE__CALLS_MOST];
};

struct world {
    struct world *next;
    char id[LOFI__NCCL_ID_BYTES];
    int count, come, references;
    int is_aborted;
    struct ncclComm *member[FAKE__RANKS_MOST];
    /* The streams are in order: a rank begins a part when its last one is done. */
    struct part *now[FAKE__RANKS_MOST];
    int waiting;     /* how many of these are there */
    int is_stuck;    /* they do not fit together */
    uint64_t number; /* of parts that are done */
};

void fake__world_release(struct world *world);
lofi__cu_result fake__run_part(void *part);
size_t fake__type_bytes(lofi__nccl_type type);
void fake__note_mismatch(void);

/* The entries of the library. */
const char *ncclGetErrorString(lofi__nccl_result result);
const char *ncclGetLastError(lofi__nccl_comm comm);
lofi__nccl_result ncclGetUniqueId(lofi__nccl_id *id);
lofi__nccl_result ncclCommInitRankConfig(lofi__nccl_comm *comm, int ranks, lofi__nccl_id id,
                                         int rank, lofi__nccl_config *config);
lofi__nccl_result ncclCommSplit(lofi__nccl_comm comm, int color, int key, lofi__nccl_comm *made,
                                lofi__nccl_config *config);
lofi__nccl_result ncclCommFinalize(lofi__nccl_comm comm);
lofi__nccl_result ncclCommDestroy(lofi__nccl_comm comm);
lofi__nccl_result ncclCommAbort(lofi__nccl_comm comm);
lofi__nccl_result ncclCommGetAsyncError(lofi__nccl_comm comm, lofi__nccl_result *error);
lofi__nccl_result ncclCommCount(lofi__nccl_comm comm, int *count);
lofi__nccl_result ncclCommUserRank(lofi__nccl_comm comm, int *rank);
lofi__nccl_result ncclRedOpCreatePreMulSum(lofi__nccl_op *op, void *scalar, lofi__nccl_type type,
                                           int residence, lofi__nccl_comm comm);
lofi__nccl_result ncclRedOpDestroy(lofi__nccl_op op, lofi__nccl_comm comm);
lofi__nccl_result ncclGroupStart(void);
lofi__nccl_result ncclGroupEnd(void);
lofi__nccl_result ncclAllReduce(const void *in, void *out, size_t count, lofi__nccl_type type,
                                lofi__nccl_op op, lofi__nccl_comm comm, lofi__cu_stream stream);
lofi__nccl_result ncclReduce(const void *in, void *out, size_t count, lofi__nccl_type type,
                             lofi__nccl_op op, int root, lofi__nccl_comm comm,
                             lofi__cu_stream stream);
lofi__nccl_result ncclBroadcast(const void *in, void *out, size_t count, lofi__nccl_type type,
                                int root, lofi__nccl_comm comm, lofi__cu_stream stream);
lofi__nccl_result ncclAllGather(const void *in, void *out, size_t count, lofi__nccl_type type,
                                lofi__nccl_comm comm, lofi__cu_stream stream);
lofi__nccl_result ncclReduceScatter(const void *in, void *out, size_t count, lofi__nccl_type type,
                                    lofi__nccl_op op, lofi__nccl_comm comm, lofi__cu_stream stream);
lofi__nccl_result ncclSend(const void *in, size_t count, lofi__nccl_type type, int to,
                           lofi__nccl_comm comm, lofi__cu_stream stream);
lofi__nccl_result ncclRecv(void *out, size_t count, lofi__nccl_type type, int from,
                           lofi__nccl_comm comm, lofi__cu_stream stream);

#endif /* LOFI_TESTS_FAKE_NCCL_INSIDE_H */
