/* SPDX-License-Identifier: MIT */
/*
 * The CUDA driver, found when it is first needed: liblofi is built without CUDA's headers, and
 * loads on machines that have none. Declared here is what is used of it, as cuda.h of CUDA 12 and
 * 13 declares it; tests/c/test_cuda_abi.c compares the two where cuda.h is installed.
 */
#ifndef LOFI_CUDA_DRIVER_H
#define LOFI_CUDA_DRIVER_H

#include "lofi.h"

#include <stdint.h>

typedef struct CUctx_st *lofi__cu_context;
typedef struct CUstream_st *lofi__cu_stream; /* what cudaStream_t is, too */
typedef struct CUevent_st *lofi__cu_event;
typedef struct CUmod_st *lofi__cu_module;
typedef struct CUfunc_st *lofi__cu_function;
typedef int lofi__cu_device;
typedef uint64_t lofi__cu_address;
typedef int lofi__cu_result; /* 0: done */

#define LOFI__CU_OUT_OF_MEMORY 2
#define LOFI__CU_NOT_READY 600
#define LOFI__CU_STREAM_NON_BLOCKING 1u
#define LOFI__CU_EVENT_DISABLE_TIMING 2u
#define LOFI__CU_POINTER_CONTEXT 1
#define LOFI__CU_POINTER_MEMORY_TYPE 2
#define LOFI__CU_POINTER_DEVICE_ORDINAL 9
#define LOFI__CU_MEMORY_HOST 1u
#define LOFI__CU_MEMORY_DEVICE 2u
#define LOFI__CU_CAPTURE_RELAXED 2

/* Each under its name in libcuda, without "cu": those with a suffix there have it in driver.c. */
struct lofi__driver {
    lofi__cu_result (*GetErrorString)(lofi__cu_result error, const char **text);
    lofi__cu_result (*Init)(unsigned flags);
    lofi__cu_result (*DeviceGetCount)(int *count);
    lofi__cu_result (*DeviceGet)(lofi__cu_device *device, int ordinal);
    lofi__cu_result (*DevicePrimaryCtxRetain)(lofi__cu_context *context, lofi__cu_device device);
    lofi__cu_result (*DevicePrimaryCtxRelease)(lofi__cu_device device);
    lofi__cu_result (*CtxGetDevice)(lofi__cu_device *device); /* of the current context */
    lofi__cu_result (*CtxPushCurrent)(lofi__cu_context context);
    lofi__cu_result (*CtxPopCurrent)(lofi__cu_context *context);
    lofi__cu_result (*PointerGetAttribute)(void *value, int attribute, lofi__cu_address pointer);
    lofi__cu_result (*MemAlloc)(lofi__cu_address *memory, size_t bytes);
    lofi__cu_result (*MemFree)(lofi__cu_address memory);
    lofi__cu_result (*MemcpyAsync)(lofi__cu_address to, lofi__cu_address from, size_t bytes,
                                   lofi__cu_stream stream);
    lofi__cu_result (*MemsetD8Async)(lofi__cu_address to, unsigned char value, size_t bytes,
                                     lofi__cu_stream stream);
    lofi__cu_result (*StreamCreate)(lofi__cu_stream *stream, unsigned flags);
    lofi__cu_result (*StreamDestroy)(lofi__cu_stream stream);
    lofi__cu_result (*StreamQuery)(lofi__cu_stream stream);
    lofi__cu_result (*StreamWaitEvent)(lofi__cu_stream stream, lofi__cu_event event,
                                       unsigned flags);
    lofi__cu_result (*EventCreate)(lofi__cu_event *event, unsigned flags);
    lofi__cu_result (*EventRecord)(lofi__cu_event event, lofi__cu_stream stream);
    lofi__cu_result (*EventDestroy)(lofi__cu_event event);
    lofi__cu_result (*ThreadExchangeStreamCaptureMode)(int *mode); /* an enum there */
    lofi__cu_result (*ModuleLoadData)(lofi__cu_module *module, const void *image);
    lofi__cu_result (*ModuleUnload)(lofi__cu_module module);
    lofi__cu_result (*ModuleGetFunction)(lofi__cu_function *function, lofi__cu_module module,
                                         const char *name);
    lofi__cu_result (*LaunchKernel)(lofi__cu_function function, unsigned grid_x, unsigned grid_y,
                                    unsigned grid_z, unsigned block_x, unsigned block_y,
                                    unsigned block_z, unsigned shared_bytes, lofi__cu_stream stream,
                                    void **parameters, void **extra);
};

/* Loads libcuda.so.1 and initialises it, once for the process; any thread. LOFI_UNSUPPORTED, with
 * the reason, if there is none, or no device. The table is static. */
lofi_status lofi__driver_get(const struct lofi__driver **driver);

/* LOFI_OK for 0, else LOFI_SYSTEM with "<what>: <CUDA's text>". */
lofi_status lofi__driver_check(const struct lofi__driver *driver, lofi__cu_result result,
                               const char *what);

#endif /* LOFI_CUDA_DRIVER_H */
