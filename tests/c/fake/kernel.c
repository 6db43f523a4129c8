/* SPDX-License-Identifier: MIT */
/* The fake driver: modules and kernels, and the table of all entries. */
#define _GNU_SOURCE
#include "fake/inside.h"

#include <stdlib.h>
#include <string.h>

struct CUmod_st {
    lofi__cu_context context;
};

static int loaded;

lofi__cu_result cuModuleLoadData(lofi__cu_module *module, const void *image)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = fake__enter("cuModuleLoadData");
    if (error == 0) error = fake__current(&context);
    if (error == 0) error = fake__unsafe();
    if (error == 0 && image == NULL) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0) {
        lofi__cu_module fresh = calloc(1, sizeof *fresh);
        if (fresh == NULL) abort();
        fresh->context = context;
        *module = fresh;
        loaded++;
    }
    return fake__leave(error);
}

lofi__cu_result cuModuleUnload(lofi__cu_module module)
{
    lofi__cu_result error = fake__enter("cuModuleUnload");
    if (error == 0) {
        free(module);
        loaded--;
    }
    return fake__leave(error);
}

void fake__count_modules(struct fake_cuda_held *held)
{
    held->modules = loaded;
}

lofi__cu_result cuModuleGetFunction(lofi__cu_function *function, lofi__cu_module module,
                                    const char *name)
{
    lofi__cu_result error = fake__enter("cuModuleGetFunction");
    (void)function;
    (void)module;
    (void)name;
    if (error == 0) error = FAKE_CUDA_NOT_FOUND;
    return fake__leave(error);
}

static _Thread_local struct fake_cuda_launch last_launch;

struct fake_cuda_launch fake_cuda_last_launch(void)
{
    return last_launch;
}

lofi__cu_result cuLaunchKernel(lofi__cu_function function, unsigned grid_x, unsigned grid_y,
                               unsigned grid_z, unsigned block_x, unsigned block_y,
                               unsigned block_z, unsigned shared_bytes, lofi__cu_stream stream,
                               void **parameters, void **extra)
{
    lofi__cu_result error = fake__enter("cuLaunchKernel");
    (void)function, (void)grid_x, (void)grid_y, (void)grid_z, (void)block_x, (void)block_y;
    (void)block_z, (void)shared_bytes, (void)stream, (void)parameters, (void)extra;
    if (error == 0) error = FAKE_CUDA_INVALID_HANDLE;
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
