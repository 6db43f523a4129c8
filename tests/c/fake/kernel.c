/* SPDX-License-Identifier: MIT */
/*
 * The fake driver: modules and kernels, and the table of all entries. A kernel is the C of its
 * threads, one after the other.
 */
#define _GNU_SOURCE
#include "cuda/mean.h"
#include "fake/inside.h"

#include <stdlib.h>
#include <string.h>

struct CUmod_st {
    lofi__cu_module next; /* the context's: unloaded with it, if not before */
    int is_unloaded;
};

typedef void (*thread_fn)(const struct lofi__cuda_mean *mean, uint64_t first, uint64_t step);

struct CUfunc_st {
    const char *name;
    size_t element_bytes;
    thread_fn run;
};

#define KERNEL(name, dtype, bits, widen, narrow)                                                   \
    static void run_##name(const struct lofi__cuda_mean *mean, uint64_t first, uint64_t step)      \
    {                                                                                              \
        lofi__mean_thread_##name(mean, first, step);                                               \
    }
LOFI__MEAN_MAP(KERNEL)
#undef KERNEL

static struct CUfunc_st kernels[] = {
#define KERNEL(name, dtype, bits, widen, narrow) {"lofi_mean_" #name, sizeof(bits), run_##name},
    LOFI__MEAN_MAP(KERNEL)
#undef KERNEL
};

static lofi__cu_module modules;

lofi__cu_result cuModuleLoadData(lofi__cu_module *module, const void *image)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = fake__enter("cuModuleLoadData");
    if (error == 0) error = fake__current(&context);
    if (error == 0) error = fake__unsafe();
    if (error == 0 && memcmp(image, "\x50\xed\x55\xba", 4) != 0) error = FAKE_CUDA_INVALID_IMAGE;
    if (error == 0) {
        lofi__cu_module fresh = calloc(1, sizeof *fresh);
        if (fresh == NULL) abort();
        fresh->next = modules;
        *module = modules = fresh;
    }
    return fake__leave(error);
}

lofi__cu_result cuModuleUnload(lofi__cu_module module)
{
    lofi__cu_result error = fake__enter("cuModuleUnload");
    if (error == 0 && (module == NULL || module->is_unloaded)) error = FAKE_CUDA_INVALID_HANDLE;
    if (error == 0) module->is_unloaded = 1;
    return fake__leave(error);
}

void fake__count_modules(struct fake_cuda_held *held)
{
    for (lofi__cu_module m = modules; m != NULL; m = m->next)
        held->modules += !m->is_unloaded;
}

lofi__cu_result cuModuleGetFunction(lofi__cu_function *function, lofi__cu_module module,
                                    const char *name)
{
    lofi__cu_result error = fake__enter("cuModuleGetFunction");
    const size_t count = sizeof kernels / sizeof kernels[0];
    size_t i = 0;

    while (i < count && strcmp(kernels[i].name, name) != 0)
        i++;
    if (error == 0 && (module == NULL || module->is_unloaded || i == count))
        error = FAKE_CUDA_NOT_FOUND;
    if (error == 0) *function = &kernels[i];
    return fake__leave(error);
}

static _Thread_local struct fake_cuda_launch last_launch;

struct fake_cuda_launch fake_cuda_last_launch(void)
{
    return last_launch;
}

struct launch {
    const struct CUfunc_st *kernel;
    uint64_t threads;
    struct lofi__cuda_mean mean;
};

static lofi__cu_result run_launch(void *ctx)
{
    const struct launch *launch = ctx;
    const struct lofi__cuda_mean *mean = &launch->mean;
    const size_t bytes = mean->count * launch->kernel->element_bytes;

    if (!fake_cuda_is_device(mean->out, bytes)) return FAKE_CUDA_ILLEGAL_ADDRESS;
    for (int i = 0; i < mean->inputs; i++)
        if (!fake_cuda_is_device(mean->in + (uint64_t)i * mean->stride_bytes, bytes))
            return FAKE_CUDA_ILLEGAL_ADDRESS;
    for (uint64_t thread = 0; thread < launch->threads; thread++)
        launch->kernel->run(mean, thread, launch->threads);
    return 0;
}

lofi__cu_result cuLaunchKernel(lofi__cu_function function, unsigned grid_x, unsigned grid_y,
                               unsigned grid_z, unsigned block_x, unsigned block_y,
                               unsigned block_z, unsigned shared_bytes, lofi__cu_stream stream,
                               void **parameters, void **extra)
{
    struct launch *launch = malloc(sizeof *launch);
    lofi__cu_result error = fake__enter("cuLaunchKernel");
    const unsigned block = block_x * block_y * block_z;

    if (launch == NULL) abort();
    if (error == 0 && (function == NULL || parameters == NULL || extra != NULL))
        error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0 && (grid_x == 0 || grid_y != 1 || grid_z != 1 || block == 0 || block > 1024))
        error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0) {
        *launch = (struct launch){.kernel = function, .threads = (uint64_t)grid_x * block};
        memcpy(&launch->mean, parameters[0], sizeof launch->mean);
        last_launch = (struct fake_cuda_launch){"", grid_x, block, shared_bytes, stream};
        strncpy(last_launch.name, function->name, sizeof last_launch.name - 1);
        error = fake__enqueue(stream, run_launch, free, launch);
    }
    if (error != 0) free(launch);
    return fake__leave(error);
}

const struct lofi__driver fake_cuda = {
    .GetErrorString = cuGetErrorString,
    .Init = cuInit,
    .DeviceGetCount = cuDeviceGetCount,
    .DeviceGet = cuDeviceGet,
    .DevicePrimaryCtxRetain = cuDevicePrimaryCtxRetain,
    .DevicePrimaryCtxRelease = cuDevicePrimaryCtxRelease_v2,
    .CtxGetDevice = cuCtxGetDevice,
    .CtxPushCurrent = cuCtxPushCurrent_v2,
    .CtxPopCurrent = cuCtxPopCurrent_v2,
    .PointerGetAttribute = cuPointerGetAttribute,
    .MemAlloc = cuMemAlloc_v2,
    .MemFree = cuMemFree_v2,
    .MemcpyAsync = cuMemcpyAsync,
    .MemsetD8Async = cuMemsetD8Async,
    .StreamCreate = cuStreamCreate,
    .StreamDestroy = cuStreamDestroy_v2,
    .StreamQuery = cuStreamQuery,
    .StreamWaitEvent = cuStreamWaitEvent,
    .EventCreate = cuEventCreate,
    .EventRecord = cuEventRecord,
    .EventDestroy = cuEventDestroy_v2,
    .ThreadExchangeStreamCaptureMode = cuThreadExchangeStreamCaptureMode,
    .ModuleLoadData = cuModuleLoadData,
    .ModuleUnload = cuModuleUnload,
    .ModuleGetFunction = cuModuleGetFunction,
    .LaunchKernel = cuLaunchKernel,
};
