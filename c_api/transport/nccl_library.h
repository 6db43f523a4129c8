/* SPDX-License-Identifier: MIT */
/*
 * NCCL, found when it is first needed, as cuda/driver.h finds CUDA: liblofi is built without
 * nccl.h. Declared here is what is used of it, as nccl.h declares it since 2.18;
 * tests/c/test_nccl_abi.c compares the two where nccl.h is installed.
 */
#ifndef LOFI_TRANSPORT_NCCL_LIBRARY_H
#define LOFI_TRANSPORT_NCCL_LIBRARY_H

#include "cuda/driver.h"

#include <limits.h>

typedef struct ncclComm *lofi__nccl_comm;
typedef int lofi__nccl_result; /* 0: done */
typedef int lofi__nccl_type;
typedef int lofi__nccl_op;

#define LOFI__NCCL_CUDA_ERROR 1
#define LOFI__NCCL_REMOTE_ERROR 6
#define LOFI__NCCL_IN_PROGRESS 7

#define LOFI__NCCL_INT8 0
#define LOFI__NCCL_UINT8 1
#define LOFI__NCCL_INT32 2
#define LOFI__NCCL_INT64 4
#define LOFI__NCCL_FLOAT16 6
#define LOFI__NCCL_FLOAT32 7
#define LOFI__NCCL_FLOAT64 8
#define LOFI__NCCL_BFLOAT16 9

#define LOFI__NCCL_SUM 0
#define LOFI__NCCL_PRODUCT 1
#define LOFI__NCCL_MAX 2
#define LOFI__NCCL_MIN 3
#define LOFI__NCCL_AVG 4

#define LOFI__NCCL_SCALAR_HOST 1

#define LOFI__NCCL_ID_BYTES 128
typedef struct lofi__nccl_id {
    char internal[LOFI__NCCL_ID_BYTES];
} lofi__nccl_id;

/* The struct of NCCL 2.18: newer libraries read as much as `size` and `version` say, and take the
 * rest as undefined. The last field is padding in 2.18, and another one's place in newer ones. */
typedef struct lofi__nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking;
    int cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
    int undefined;
} lofi__nccl_config;

#define LOFI__NCCL_CONFIG_INIT                                                                     \
    {                                                                                              \
        sizeof(lofi__nccl_config), 0xcafebeefu, 21800u, INT_MIN, INT_MIN, INT_MIN, INT_MIN, NULL,  \
            INT_MIN, INT_MIN                                                                       \
    }

/* Each under its name in libnccl, without "nccl". */
struct lofi__nccl_library {
    const char *(*GetErrorString)(lofi__nccl_result result);
    const char *(*GetLastError)(lofi__nccl_comm comm);
    lofi__nccl_result (*GetUniqueId)(lofi__nccl_id *id);
    lofi__nccl_result (*CommInitRankConfig)(lofi__nccl_comm *comm, int ranks, lofi__nccl_id id,
                                            int rank, lofi__nccl_config *config);
    lofi__nccl_result (*CommSplit)(lofi__nccl_comm comm, int color, int key, lofi__nccl_comm *made,
                                   lofi__nccl_config *config);
    lofi__nccl_result (*CommFinalize)(lofi__nccl_comm comm);
    lofi__nccl_result (*CommDestroy)(lofi__nccl_comm comm);
    lofi__nccl_result (*CommAbort)(lofi__nccl_comm comm);
    lofi__nccl_result (*CommGetAsyncError)(lofi__nccl_comm comm, lofi__nccl_result *error);
    lofi__nccl_result (*CommCount)(lofi__nccl_comm comm, int *count);
    lofi__nccl_result (*CommUserRank)(lofi__nccl_comm comm, int *rank);
    lofi__nccl_result (*RedOpCreatePreMulSum)(lofi__nccl_op *op, void *scalar, lofi__nccl_type type,
                                              int residence, lofi__nccl_comm comm);
    lofi__nccl_result (*RedOpDestroy)(lofi__nccl_op op, lofi__nccl_comm comm);
    lofi__nccl_result (*AllReduce)(const void *in, void *out, size_t count, lofi__nccl_type type,
                                   lofi__nccl_op op, lofi__nccl_comm comm, lofi__cu_stream stream);
    lofi__nccl_result (*Reduce)(const void *in, void *out, size_t count, lofi__nccl_type type,
                                lofi__nccl_op op, int root, lofi__nccl_comm comm,
                                lofi__cu_stream stream);
    lofi__nccl_result (*Broadcast)(const void *in, void *out, size_t count, lofi__nccl_type type,
                                   int root, lofi__nccl_comm comm, lofi__cu_stream stream);
    lofi__nccl_result (*AllGather)(const void *in, void *out, size_t count, lofi__nccl_type type,
                                   lofi__nccl_comm comm, lofi__cu_stream stream);
    lofi__nccl_result (*ReduceScatter)(const void *in, void *out, size_t count,
                                       lofi__nccl_type type, lofi__nccl_op op, lofi__nccl_comm comm,
                                       lofi__cu_stream stream);
    lofi__nccl_result (*Send)(const void *in, size_t count, lofi__nccl_type type, int to,
                              lofi__nccl_comm comm, lofi__cu_stream stream);
    lofi__nccl_result (*Recv)(void *out, size_t count, lofi__nccl_type type, int from,
                              lofi__nccl_comm comm, lofi__cu_stream stream);
    lofi__nccl_result (*GroupStart)(void);
    lofi__nccl_result (*GroupEnd)(void);
};

/* Loads libnccl.so.2, once for the process; any thread. LOFI_UNSUPPORTED, with the reason, if
 * there is none, or one older than 2.18. The table is static. */
lofi_status lofi__nccl_library_get(const struct lofi__nccl_library **library);

#endif /* LOFI_TRANSPORT_NCCL_LIBRARY_H */
