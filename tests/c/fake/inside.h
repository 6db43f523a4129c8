/* SPDX-License-Identifier: MIT */
/* What the files of the fake driver share. */
#ifndef LOFI_TESTS_FAKE_INSIDE_H
#define LOFI_TESTS_FAKE_INSIDE_H

#include "fake/fake.h"

#define FAKE__DEFAULT_STREAM ((lofi__cu_stream)1) /* another name of NULL, CU_STREAM_LEGACY */

struct CUctx_st {
    int device;
    int retained;
    lofi__cu_stream default_stream; /* made when it is first used */
};

/* Takes the lock, which a thread may hold several times, counts the call, and returns the error
 * that the call is to fail with. Each call that enters leaves. */
lofi__cu_result fake__enter(const char *symbol);
lofi__cu_result fake__leave(lofi__cu_result result);
void fake__lock(void);
void fake__unlock(void);

/* Under the lock: */

/* The current context of the thread in `context`, or what CUDA says if there is none. */
lofi__cu_result fake__current(lofi__cu_context *context);
/* Not while a stream is captured. */
lofi__cu_result fake__unsafe(void);
/* As fake_cuda_enqueue; the lock is held. */
lofi__cu_result fake__enqueue(lofi__cu_stream stream, fake_cuda_fn fn, void (*done)(void *),
                              void *ctx);
/* 0 if a copy may touch the bytes: device memory that has all of them, or memory of the host. */
lofi__cu_result fake__check_copy(lofi__cu_address memory, size_t bytes);
void fake__count_streams(struct fake_cuda_held *held);
void fake__count_modules(struct fake_cuda_held *held);

/* The entries of the driver. */
lofi__cu_result cuGetErrorString(lofi__cu_result error, const char **text);
lofi__cu_result cuInit(unsigned flags);
lofi__cu_result cuDeviceGetCount(int *count);
lofi__cu_result cuDeviceGet(lofi__cu_device *device, int ordinal);
lofi__cu_result cuDevicePrimaryCtxRetain(lofi__cu_context *context, lofi__cu_device device);
lofi__cu_result cuDevicePrimaryCtxRelease_v2(lofi__cu_device device);
lofi__cu_result cuCtxGetDevice(lofi__cu_device *device);
lofi__cu_result cuCtxPushCurrent_v2(lofi__cu_context context);
lofi__cu_result cuCtxPopCurrent_v2(lofi__cu_context *context);
lofi__cu_result cuThreadExchangeStreamCaptureMode(int *mode);
lofi__cu_result cuMemAlloc_v2(lofi__cu_address *memory, size_t bytes);
lofi__cu_result cuMemFree_v2(lofi__cu_address memory);
lofi__cu_result cuPointerGetAttribute(void *value, int attribute, lofi__cu_address pointer);
lofi__cu_result cuMemcpyAsync(lofi__cu_address to, lofi__cu_address from, size_t bytes,
                              lofi__cu_stream stream);
lofi__cu_result cuMemsetD8Async(lofi__cu_address to, unsigned char value, size_t bytes,
                                lofi__cu_stream stream);
lofi__cu_result cuStreamCreate(lofi__cu_stream *stream, unsigned flags);
lofi__cu_result cuStreamDestroy_v2(lofi__cu_stream stream);
lofi__cu_result cuStreamQuery(lofi__cu_stream stream);
lofi__cu_result cuStreamWaitEvent(lofi__cu_stream stream, lofi__cu_event event, unsigned flags);
lofi__cu_result cuEventCreate(lofi__cu_event *event, unsigned flags);
lofi__cu_result cuEventRecord(lofi__cu_event event, lofi__cu_stream stream);
lofi__cu_result cuEventDestroy_v2(lofi__cu_event event);
lofi__cu_result cuModuleLoadData(lofi__cu_module *module, const void *image);
lofi__cu_result cuModuleUnload(lofi__cu_module module);
lofi__cu_result cuModuleGetFunction(lofi__cu_function *function, lofi__cu_module module,
                                    const char *name);
lofi__cu_result cuLaunchKernel(lofi__cu_function function, unsigned grid_x, unsigned grid_y,
                               unsigned grid_z, unsigned block_x, unsigned block_y,
                               unsigned block_z, unsigned shared_bytes, lofi__cu_stream stream,
                               void **parameters, void **extra);

#endif /* LOFI_TESTS_FAKE_INSIDE_H */
