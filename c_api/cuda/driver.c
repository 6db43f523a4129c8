/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "cuda/driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "libcuda.so.1"

static struct lofi__driver table;
static lofi_status status;
static char why[512];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const struct {
    const char *symbol;
    size_t offset;
} entries[] = {
#define ENTRY(field, symbol)                                                                       \
    {                                                                                              \
        symbol, offsetof(struct lofi__driver, field)                                               \
    }
    ENTRY(GetErrorString, "cuGetErrorString"),
    ENTRY(Init, "cuInit"),
    ENTRY(DeviceGetCount, "cuDeviceGetCount"),
    ENTRY(DeviceGet, "cuDeviceGet"),
    ENTRY(DevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain"),
    ENTRY(DevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2"),
    ENTRY(CtxGetDevice, "cuCtxGetDevice"),
    ENTRY(CtxPushCurrent, "cuCtxPushCurrent_v2"),
    ENTRY(CtxPopCurrent, "cuCtxPopCurrent_v2"),
    ENTRY(PointerGetAttribute, "cuPointerGetAttribute"),
    ENTRY(MemAlloc, "cuMemAlloc_v2"),
    ENTRY(MemFree, "cuMemFree_v2"),
    ENTRY(MemcpyAsync, "cuMemcpyAsync"),
    ENTRY(MemsetD8Async, "cuMemsetD8Async"),
    ENTRY(StreamCreate, "cuStreamCreate"),
    ENTRY(StreamDestroy, "cuStreamDestroy_v2"),
    ENTRY(StreamQuery, "cuStreamQuery"),
    ENTRY(StreamWaitEvent, "cuStreamWaitEvent"),
    ENTRY(EventCreate, "cuEventCreate"),
    ENTRY(EventRecord, "cuEventRecord"),
    ENTRY(EventDestroy, "cuEventDestroy_v2"),
    ENTRY(ThreadExchangeStreamCaptureMode, "cuThreadExchangeStreamCaptureMode"),
    ENTRY(ModuleLoadData, "cuModuleLoadData"),
    ENTRY(ModuleUnload, "cuModuleUnload"),
    ENTRY(ModuleGetFunction, "cuModuleGetFunction"),
    ENTRY(LaunchKernel, "cuLaunchKernel"),
#undef ENTRY
};

/* NULL, or what is wrong. */
static const char *load_all(void)
{
    static char missing[64];
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL); /* stays: its threads may, too */

    if (library == NULL) return dlerror();
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        void *symbol = dlsym(library, entries[i].symbol);
        if (symbol == NULL) {
            snprintf(missing, sizeof missing, "it has no %s", entries[i].symbol);
            return missing;
        }
        memcpy((char *)&table + entries[i].offset, &symbol, sizeof symbol);
    }
    return NULL;
}

static void load(void)
{
    const char *error = load_all();
    int count = 0;

    status = LOFI_UNSUPPORTED;
    if (error != NULL) {
        snprintf(why, sizeof why, "no CUDA driver: " LIBRARY " can't be used: %s", error);
        return;
    }
    lofi__cu_result result = table.Init(0);
    if (result == 0) result = table.DeviceGetCount(&count);
    if (result != 0) {
        table.GetErrorString(result, &error);
        snprintf(why, sizeof why, "the CUDA driver does not start: %s",
                 error != NULL ? error : "unknown error");
    } else if (count == 0) {
        snprintf(why, sizeof why, "the CUDA driver sees no device");
    } else {
        status = LOFI_OK;
    }
}

lofi_status lofi__driver_get(const struct lofi__driver **driver)
{
    pthread_once(&once, load);
    *driver = &table;
    if (status != LOFI_OK) lofi_set_error("%s", why);
    return status;
}

lofi_status lofi__driver_check(const struct lofi__driver *driver, lofi__cu_result result,
                               const char *what)
{
    const char *text = NULL;

    if (result == 0) return LOFI_OK;
    driver->GetErrorString(result, &text);
    lofi_set_error("%s: CUDA says: %s (%d)", what, text != NULL ? text : "unknown error", result);
    return LOFI_SYSTEM;
}
