/* SPDX-License-Identifier: MIT */
/*
 * driver.h against the cuda.h of a CUDA toolkit: types, constants, the parameters of each function,
 * and the names under which libcuda has them. Skipped where cuda.h is not installed.
 */
#include <stdio.h>

#if defined(LOFI_CUDA_H)

#include "fake/fake.h"
#include "test.h"

#include <cuda.h>
#include <dlfcn.h>

#define SAME_SIZE(ours, theirs) _Static_assert(sizeof(ours) == sizeof(theirs), #ours)
SAME_SIZE(lofi__cu_context, CUcontext);
SAME_SIZE(lofi__cu_stream, CUstream);
SAME_SIZE(lofi__cu_event, CUevent);
SAME_SIZE(lofi__cu_module, CUmodule);
SAME_SIZE(lofi__cu_function, CUfunction);
SAME_SIZE(lofi__cu_device, CUdevice);
SAME_SIZE(lofi__cu_address, CUdeviceptr);
SAME_SIZE(lofi__cu_result, CUresult);
SAME_SIZE(int, CUstreamCaptureMode);
SAME_SIZE(int, CUpointer_attribute);
SAME_SIZE(unsigned, CUmemorytype);

#define SAME_VALUE(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME_VALUE(0, CUDA_SUCCESS);
SAME_VALUE(LOFI__CU_NOT_READY, CUDA_ERROR_NOT_READY);
SAME_VALUE(LOFI__CU_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME_VALUE(LOFI__CU_EVENT_DISABLE_TIMING, CU_EVENT_DISABLE_TIMING);
SAME_VALUE(LOFI__CU_POINTER_CONTEXT, CU_POINTER_ATTRIBUTE_CONTEXT);
SAME_VALUE(LOFI__CU_POINTER_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME_VALUE(LOFI__CU_POINTER_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME_VALUE(LOFI__CU_MEMORY_HOST, CU_MEMORYTYPE_HOST);
SAME_VALUE(LOFI__CU_MEMORY_DEVICE, CU_MEMORYTYPE_DEVICE);
SAME_VALUE(LOFI__CU_CAPTURE_RELAXED, CU_STREAM_CAPTURE_MODE_RELAXED);
SAME_VALUE(FAKE_CUDA_INVALID_VALUE, CUDA_ERROR_INVALID_VALUE);
SAME_VALUE(FAKE_CUDA_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME_VALUE(FAKE_CUDA_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME_VALUE(FAKE_CUDA_INVALID_IMAGE, CUDA_ERROR_INVALID_IMAGE);
SAME_VALUE(FAKE_CUDA_INVALID_CONTEXT, CUDA_ERROR_INVALID_CONTEXT);
SAME_VALUE(FAKE_CUDA_NO_BINARY, CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME_VALUE(221, CUDA_ERROR_JIT_COMPILER_NOT_FOUND);
SAME_VALUE(222, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
SAME_VALUE(FAKE_CUDA_INVALID_HANDLE, CUDA_ERROR_INVALID_HANDLE);
SAME_VALUE(FAKE_CUDA_NOT_FOUND, CUDA_ERROR_NOT_FOUND);
SAME_VALUE(FAKE_CUDA_ILLEGAL_ADDRESS, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME_VALUE(FAKE_CUDA_CONTEXT_IS_DESTROYED, CUDA_ERROR_CONTEXT_IS_DESTROYED);
SAME_VALUE(FAKE_CUDA_CAPTURE_UNSUPPORTED, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);

/* Each function with the parameters that driver.h gives it, in the words of cuda.h. Its enums are
 * passed as the integers of their size, its handles as pointers to the same structs. */
#define FUNCTIONS(X)                                                                               \
    X(GetErrorString, cuGetErrorString, (CUresult, const char **))                                 \
    X(Init, cuInit, (unsigned))                                                                    \
    X(DeviceGetCount, cuDeviceGetCount, (int *))                                                   \
    X(DeviceGet, cuDeviceGet, (CUdevice *, int))                                                   \
    X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                   \
    X(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease, (CUdevice))                              \
    X(CtxGetDevice, cuCtxGetDevice, (CUdevice *))                                                  \
    X(CtxPushCurrent, cuCtxPushCurrent, (CUcontext))                                               \
    X(CtxPopCurrent, cuCtxPopCurrent, (CUcontext *))                                               \
    X(PointerGetAttribute, cuPointerGetAttribute, (void *, CUpointer_attribute, CUdeviceptr))      \
    X(MemAlloc, cuMemAlloc, (CUdeviceptr *, size_t))                                               \
    X(MemFree, cuMemFree, (CUdeviceptr))                                                           \
    X(MemcpyAsync, cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                    \
    X(MemsetD8Async, cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))              \
    X(StreamCreate, cuStreamCreate, (CUstream *, unsigned))                                        \
    X(StreamDestroy, cuStreamDestroy, (CUstream))                                                  \
    X(StreamQuery, cuStreamQuery, (CUstream))                                                      \
    X(StreamWaitEvent, cuStreamWaitEvent, (CUstream, CUevent, unsigned))                           \
    X(EventCreate, cuEventCreate, (CUevent *, unsigned))                                           \
    X(EventRecord, cuEventRecord, (CUevent, CUstream))                                             \
    X(EventDestroy, cuEventDestroy, (CUevent))                                                     \
    X(ThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode, (CUstreamCaptureMode *)) \
    X(ModuleLoadData, cuModuleLoadData, (CUmodule *, const void *))                                \
    X(ModuleUnload, cuModuleUnload, (CUmodule))                                                    \
    X(ModuleGetFunction, cuModuleGetFunction, (CUfunction *, CUmodule, const char *))              \
    X(LaunchKernel, cuLaunchKernel,                                                                \
      (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
       void **, void **))

#define SAME_PARAMETERS(field, function, parameters)                                               \
    _Static_assert(_Generic(&(function), CUresult(*) parameters : 1, default : 0), #field);
FUNCTIONS(SAME_PARAMETERS)

static void check_name(const char *name, const void *entry, const void *expected)
{
    void *symbol = dlsym(RTLD_DEFAULT, name);
    if (!EXPECT(symbol != NULL && memcmp(&symbol, expected, sizeof symbol) == 0))
        fprintf(stderr, "%s\n", name);
    EXPECT(memcmp(entry, expected, sizeof symbol) == 0);
}

/* cuda.h renames functions to those of its version: cuMemAlloc is cuMemAlloc_v2. */
#define NAME(function) #function
#define CHECK_NAME(field, function, parameters)                                                    \
    check_name(NAME(function), &driver->field, &fake_cuda.field);

int main(void)
{
    const struct lofi__driver *driver = NULL;

    ASSERT(lofi__driver_get(&driver) == LOFI_OK);
    FUNCTIONS(CHECK_NAME)
    return test_end();
}

#else

int main(void)
{
    printf("skipped: there was no cuda.h to compare with\n");
    return 77;
}

#endif
