/* SPDX-License-Identifier: MIT */
/*
 * lofi_finalize_average on the device, against lofi_mean over everybody's data: the same bits on
 * every rank, within the scratch memory, with nodes and columns split off one communicator. The data
 * are written by work on the caller's stream that nobody waits for.
 */
#define _GNU_SOURCE
#include "gpus.h"

struct layout {
    int nodes, local_size;
};

/* The weights of a node: the same on all of its ranks. */
static void fill(char *data, lofi_dtype dtype, size_t count, int node)
{
    uint64_t seed = (uint64_t)node * 977 + count;
    const size_t each = lofi_dtype_bytes(dtype);

    for (size_t i = 0; i < count; i++) {
        const uint64_t bits = test_random(&seed);
        const double wide = (double)(int)(bits % 20011) / 777.0 - 9.0;
        const float narrow = (float)wide;
        const uint16_t half = (uint16_t)(0x3000 + bits % 0x1400); /* of either 16-bit format */
        const uint8_t octet = (uint8_t)(bits % 0x78);             /* of either 8-bit format */
        const void *from = dtype == LOFI_F64   ? (const void *)&wide
                           : dtype == LOFI_F32 ? (const void *)&narrow
                           : each == 2         ? (const void *)&half
                           : each == 1         ? (const void *)&octet
                                               : (const void *)&bits;
        memcpy(data + i * each, from, each);
    }
}

struct comms {
    lofi_comm *world, *node, *column;
};

static struct comms open_comms(struct gpu *gpu, int timeout_ms)
{
    const struct layout *layout = gpu->arg;
    const int k = gpu->rank / layout->local_size, place = gpu->rank % layout->local_size;
    struct comms comms = {gpus_comm(gpu, timeout_ms), NULL, NULL};

    CHECK(gpus_split(gpu, comms.world, k, place, layout->local_size, &comms.node) == LOFI_OK);
    CHECK(gpus_split(gpu, comms.world, place, k, layout->nodes, &comms.column) == LOFI_OK);
    return comms;
}

static void close_comms(struct comms *comms)
{
    lofi_comm_destroy(comms->column);
    lofi_comm_destroy(comms->node);
    lofi_comm_destroy(comms->world);
}

/* `without`: a node that gives nothing; -1: all do. */
static void check(struct gpu *gpu, const struct comms *comms, lofi_dtype dtype, size_t count,
                  const double *weights, size_t scratch_bytes, int without)
{
    const struct layout *layout = gpu->arg;
    const size_t each = lofi_dtype_bytes(dtype), bytes = count * each;
    char *host = malloc(bytes), *want = malloc(bytes), *data = gpus_alloc(gpu, bytes + each);
    void *in[GPUS_MOST];
    double chosen[GPUS_MOST];
    unsigned char gives[GPUS_MOST];
    int givers = 0;
    lofi_exchange_options options = LOFI_EXCHANGE_OPTIONS_INIT;

    for (int k = 0; k < layout->nodes; k++) {
        gives[k] = k != without;
        if (k == without) continue;
        if (weights != NULL) chosen[givers] = weights[k];
        in[givers] = malloc(bytes);
        fill(in[givers++], dtype, count, k);
    }
    CHECK(lofi_mean(dtype, want, (const void *const *)in, weights != NULL ? chosen : NULL, givers,
                    count) == LOFI_OK);
    fill(host, dtype, count, gpu->rank / layout->local_size);
    CHECK(fake_cuda.MemcpyAsync((uintptr_t)data, (uintptr_t)host, bytes, gpu->stream) == 0);
    fake_cuda_count_bytes(gpu->rank);
    options.dtype = dtype;
    options.weights = weights;
    options.gives = gives;
    options.scratch_bytes = scratch_bytes;
    CHECK(lofi_exchange(comms->node, comms->column, data, count, &options) == LOFI_OK);
    CHECK(fake_cuda_most_bytes(gpu->rank) <= (scratch_bytes != 0 ? scratch_bytes : 64 << 20));
    if (!CHECK(memcmp(data, want, bytes) == 0))
        fprintf(stderr, "%d nodes of %d, %zu %s, scratch %zu\n", layout->nodes, layout->local_size,
                count, lofi_dtype_name(dtype), scratch_bytes);
    for (size_t i = 0; i < each; i++)
        CHECK((unsigned char)data[bytes + i] == 0xa5); /* nothing past the end */
    for (int k = 0; k < givers; k++)
        free(in[k]);
    fake_cuda_free(data);
    free(want);
    free(host);
}

static void average(struct gpu *gpu)
{
    static const lofi_dtype dtypes[] = {LOFI_F64, LOFI_F32,     LOFI_BF16,    LOFI_F16,
                                        LOFI_I64, LOFI_F8_E4M3, LOFI_F8_E5M2, LOFI_BYTES};
    static const size_t counts[] = {1, 5, 64, 1001, 6000};
    static const double weights[] = {1, 2.5, 3, 0.25};
    const struct layout *layout = gpu->arg;
    struct comms comms = open_comms(gpu, 20000);

    for (int d = 0; d < 8; d++)
        for (int c = 0; c < 5; c++) {
            check(gpu, &comms, dtypes[d], counts[c], NULL, 0, -1);
            check(gpu, &comms, dtypes[d], counts[c], weights, 4096, -1);
            for (int without = 0; without < layout->nodes && layout->nodes > 1; without++)
                check(gpu, &comms, dtypes[d], counts[c], weights, 4096, without);
        }
    close_comms(&comms);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static lofi_comm *open_self(void)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_comm *comm = NULL;

    options.transport = "self";
    CHECK(lofi_comm_create(&options, NULL, NULL, &comm) == LOFI_OK);
    return comm;
}

static void refusals(struct gpu *gpu)
{
    struct comms comms = open_comms(gpu, 5000);
    lofi_comm *self = open_self();
    float *data = gpus_alloc(gpu, 64 * sizeof *data), on_host[64] = {0};

    memset(data, 0, 64 * sizeof *data);
    CHECK(lofi_finalize_average(comms.node, self, LOFI_F32, data, 64, NULL, 0) == LOFI_INVALID);
    CHECK_ERROR("the node in device memory (nccl) and the column in host memory (self)");
    CHECK(lofi_finalize_average(self, comms.column, LOFI_F32, data, 64, NULL, 0) == LOFI_INVALID);
    CHECK_ERROR("the node in host memory (self)");
    CHECK(lofi_finalize_average(comms.node, comms.column, LOFI_F32, on_host, 64, NULL, 0) ==
          LOFI_INVALID);
    CHECK_ERROR("an average: the data at ");
    CHECK_ERROR("is not in device memory");
    lofi_exchange_options options = LOFI_EXCHANGE_OPTIONS_INIT;
    options.base = data;
    CHECK(lofi_exchange(comms.node, comms.column, data, 64, &options) == LOFI_UNSUPPORTED);
    CHECK_ERROR("an average with a base in device memory");
    /* All that broke nothing. */
    CHECK(lofi_finalize_average(comms.node, comms.column, LOFI_F32, data, 64, NULL, 0) == LOFI_OK);
    CHECK(data[63] == 0);
    fake_cuda_free(data);
    lofi_comm_destroy(self);
    close_comms(&comms);
}

/* What the driver refuses is an error, and nothing is left behind; one rank, so that nobody waits. */
static void failures(struct gpu *gpu)
{
    static const char *const symbols[] = {
        "cuMemAlloc_v2", "cuMemsetD8Async", "cuMemcpyAsync",     "cuLaunchKernel",
        "cuStreamQuery", "cuEventRecord",   "cuStreamWaitEvent", "cuCtxPushCurrent_v2"};
    float *data = gpus_alloc(gpu, 64 * sizeof *data);

    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        struct comms comms = open_comms(gpu, 5000);
        fake_cuda_fail_next(symbols[i], i == 0 ? FAKE_CUDA_OUT_OF_MEMORY : 999);
        lofi_status st =
            lofi_finalize_average(comms.node, comms.column, LOFI_F32, data, 64, NULL, 0);
        if (!CHECK(st == (i == 0 ? LOFI_NO_MEMORY : LOFI_SYSTEM)))
            fprintf(stderr, "%s fails: %s\n", symbols[i], lofi_status_name(st));
        if (i == 0) {
            CHECK_ERROR("the device has no ");
        } else {
            CHECK_ERROR("CUDA says");
        }
        close_comms(&comms);
    }
    fake_cuda_free(data);
}

int main(void)
{
    static struct layout layouts[] = {{2, 1}, {2, 2}, {3, 1}, {3, 2}, {1, 2}, {1, 1}};

    if (!lofi_cuda_is_built()) {
        printf("skipped: built without kernels for GPUs\n");
        return 77;
    }
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        gpus_run(layouts[i].nodes * layouts[i].local_size, average, &layouts[i]);
    gpus_run(1, refusals, &layouts[5]);
    gpus_run(1, failures, &layouts[5]);
    EXPECT(fake_nccl_held().mismatches == 0);
    return test_end();
}
