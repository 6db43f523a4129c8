/* SPDX-License-Identifier: MIT */
/* What nccl_library.h declares is what nccl.h declares. Checked by the compiler. */
#include "test.h"
#include "transport/nccl_library.h"

#include <stddef.h>

#ifdef LOFI_NCCL_H
#include <assert.h>
#include <nccl.h>

static_assert(LOFI__NCCL_CUDA_ERROR == ncclUnhandledCudaError, "");
static_assert(LOFI__NCCL_REMOTE_ERROR == ncclRemoteError, "");
static_assert(LOFI__NCCL_IN_PROGRESS == ncclInProgress, "");
static_assert(ncclSuccess == 0, "");
static_assert(sizeof(lofi__nccl_result) == sizeof(ncclResult_t), "");

static_assert(sizeof(lofi__nccl_type) == sizeof(ncclDataType_t), "");
static_assert(LOFI__NCCL_INT8 == ncclInt8, "");
static_assert(LOFI__NCCL_UINT8 == ncclUint8, "");
static_assert(LOFI__NCCL_INT32 == ncclInt32, "");
static_assert(LOFI__NCCL_INT64 == ncclInt64, "");
static_assert(LOFI__NCCL_FLOAT16 == ncclFloat16, "");
static_assert(LOFI__NCCL_FLOAT32 == ncclFloat32, "");
static_assert(LOFI__NCCL_FLOAT64 == ncclFloat64, "");
static_assert(LOFI__NCCL_BFLOAT16 == ncclBfloat16, "");

static_assert(sizeof(lofi__nccl_op) == sizeof(ncclRedOp_t), "");
static_assert(LOFI__NCCL_SUM == ncclSum, "");
static_assert(LOFI__NCCL_PRODUCT == ncclProd, "");
static_assert(LOFI__NCCL_MAX == ncclMax, "");
static_assert(LOFI__NCCL_MIN == ncclMin, "");
static_assert(LOFI__NCCL_AVG == ncclAvg, "");
static_assert(LOFI__NCCL_SCALAR_HOST == ncclScalarHostImmediate, "");

static_assert(sizeof(lofi__nccl_id) == sizeof(ncclUniqueId), "");
static_assert(LOFI__NCCL_ID_BYTES == NCCL_UNIQUE_ID_BYTES, "");

#define SAME(ours, theirs)                                                                         \
    static_assert(offsetof(lofi__nccl_config, ours) == offsetof(ncclConfig_t, theirs), "")
SAME(size, size);
SAME(magic, magic);
SAME(version, version);
SAME(blocking, blocking);
SAME(cga_cluster_size, cgaClusterSize);
SAME(min_ctas, minCTAs);
SAME(max_ctas, maxCTAs);
SAME(net_name, netName);
SAME(split_share, splitShare);
static_assert(sizeof(lofi__nccl_config) <= sizeof(ncclConfig_t), "");
static_assert(NCCL_CONFIG_UNDEF_INT == INT_MIN, "");

/* The parameters, up to what a pointer points to and which enum an int is: each entry is called
 * with theirs. Never run. */
static void call_all(const struct lofi__nccl_library *l, ncclUniqueId *id, ncclComm_t comm,
                     ncclConfig_t *config, cudaStream_t stream, void *data)
{
    lofi__nccl_id ours;
    int number = 0;

    memcpy(&ours, id, sizeof ours);
    const lofi__nccl_result results[] = {
        l->CommInitRankConfig(&comm, 1, ours, 0, (lofi__nccl_config *)(void *)config),
        l->CommSplit(comm, 0, 0, &comm, (lofi__nccl_config *)(void *)config),
        l->CommGetAsyncError(comm, &number),
        l->AllReduce(data, data, 1, ncclInt8, ncclSum, comm, stream),
    };
    (void)results;
}

int main(void)
{
    const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
    const lofi__nccl_config ours = LOFI__NCCL_CONFIG_INIT;

    EXPECT(ours.magic == theirs.magic);
    EXPECT(ours.version <= theirs.version && ours.version == NCCL_VERSION(2, 18, 0));
    EXPECT(ours.blocking == theirs.blocking && ours.split_share == theirs.splitShare);
    EXPECT(call_all != NULL);
    return test_end();
}
#else
int main(void)
{
    printf("nccl.h is not installed\n");
    return 77;
}
#endif
