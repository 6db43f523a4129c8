/* SPDX-License-Identifier: MIT */
/* The fake driver: calls, contexts, memory. */
#define _GNU_SOURCE
#include "fake/inside.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---- calls ---- */

static pthread_mutex_t lock;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_lock(void)
{
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
}

void fake__lock(void)
{
    pthread_once(&once, make_lock);
    pthread_mutex_lock(&lock);
}

void fake__unlock(void)
{
    pthread_mutex_unlock(&lock);
}

static struct call {
    char symbol[48];
    int count;
    lofi__cu_result failure;
} calls[64];

static struct call *find_call(const char *symbol)
{
    int i = 0;
    while (calls[i].symbol[0] != '\0' && strcmp(calls[i].symbol, symbol) != 0)
        i++;
    if (i + 1 == (int)(sizeof calls / sizeof calls[0])) abort(); /* too many names */
    strncpy(calls[i].symbol, symbol, sizeof calls[i].symbol - 1);
    return &calls[i];
}

lofi__cu_result fake__enter(const char *symbol)
{
    fake__lock();
    struct call *call = find_call(symbol);
    const lofi__cu_result failure = call->failure;
    call->count++;
    call->failure = 0;
    return failure;
}

lofi__cu_result fake__leave(lofi__cu_result result)
{
    fake__unlock();
    return result;
}

void fake_cuda_fail_next(const char *symbol, lofi__cu_result error)
{
    fake__lock();
    find_call(symbol)->failure = error;
    fake__unlock();
}

int fake_cuda_calls(const char *symbol)
{
    fake__lock();
    const int count = find_call(symbol)->count;
    fake__unlock();
    return count;
}

lofi__cu_result cuGetErrorString(lofi__cu_result error, const char **text)
{
    static const struct {
        lofi__cu_result error;
        const char *text;
    } texts[] = {{0, "no error"},
                 {FAKE_CUDA_INVALID_VALUE, "invalid argument"},
                 {FAKE_CUDA_OUT_OF_MEMORY, "out of memory"},
                 {FAKE_CUDA_NO_DEVICE, "no CUDA-capable device is detected"},
                 {FAKE_CUDA_INVALID_IMAGE, "device kernel image is invalid"},
                 {FAKE_CUDA_INVALID_CONTEXT, "invalid device context"},
                 {FAKE_CUDA_NO_BINARY, "no kernel image is available for execution on the device"},
                 {FAKE_CUDA_INVALID_HANDLE, "invalid resource handle"},
                 {FAKE_CUDA_NOT_FOUND, "named symbol not found"},
                 {LOFI__CU_NOT_READY, "device not ready"},
                 {FAKE_CUDA_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
                 {FAKE_CUDA_CONTEXT_IS_DESTROYED, "context is destroyed"},
                 {FAKE_CUDA_CAPTURE_UNSUPPORTED, "operation not permitted when stream is "
                                                 "capturing"}};

    *text = NULL;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i].error == error) *text = texts[i].text;
    return *text != NULL ? 0 : FAKE_CUDA_INVALID_VALUE;
}

/* ---- devices and contexts ---- */

static struct CUctx_st contexts[FAKE_CUDA_DEVICES];
static _Thread_local lofi__cu_context stack[16];
static _Thread_local int depth;

lofi__cu_result cuInit(unsigned flags)
{
    lofi__cu_result error = fake__enter("cuInit");
    if (error == 0 && flags != 0) error = FAKE_CUDA_INVALID_VALUE;
    for (int i = 0; i < FAKE_CUDA_DEVICES; i++)
        contexts[i].device = i;
    return fake__leave(error);
}

lofi__cu_result cuDeviceGetCount(int *count)
{
    lofi__cu_result error = fake__enter("cuDeviceGetCount");
    if (error == 0) *count = FAKE_CUDA_DEVICES;
    return fake__leave(error);
}

static int is_device(int device)
{
    return device >= 0 && device < FAKE_CUDA_DEVICES;
}

lofi__cu_result cuDeviceGet(lofi__cu_device *device, int ordinal)
{
    lofi__cu_result error = fake__enter("cuDeviceGet");
    if (error == 0 && !is_device(ordinal)) error = 101;
    if (error == 0) *device = ordinal;
    return fake__leave(error);
}

lofi__cu_result cuDevicePrimaryCtxRetain(lofi__cu_context *context, lofi__cu_device device)
{
    lofi__cu_result error = fake__enter("cuDevicePrimaryCtxRetain");
    if (error == 0 && !is_device(device)) error = 101;
    if (error == 0) {
        contexts[device].device = device;
        contexts[device].retained++;
        *context = &contexts[device];
    }
    return fake__leave(error);
}

lofi__cu_result cuDevicePrimaryCtxRelease_v2(lofi__cu_device device)
{
    lofi__cu_result error = fake__enter("cuDevicePrimaryCtxRelease_v2");
    if (error == 0 && !is_device(device)) error = 101;
    if (error == 0 && contexts[device].retained == 0) error = FAKE_CUDA_INVALID_CONTEXT;
    if (error == 0) contexts[device].retained--;
    return fake__leave(error);
}

lofi__cu_result fake__current(lofi__cu_context *context)
{
    if (depth == 0) return FAKE_CUDA_INVALID_CONTEXT;
    *context = stack[depth - 1];
    return (*context)->retained > 0 ? 0 : FAKE_CUDA_CONTEXT_IS_DESTROYED;
}

lofi__cu_result cuCtxGetDevice(lofi__cu_device *device)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = fake__enter("cuCtxGetDevice");
    if (error == 0) error = fake__current(&context);
    if (error == 0) *device = context->device;
    return fake__leave(error);
}

lofi__cu_result cuCtxPushCurrent_v2(lofi__cu_context context)
{
    lofi__cu_result error = fake__enter("cuCtxPushCurrent_v2");
    if (error == 0 && context == NULL) error = FAKE_CUDA_INVALID_CONTEXT;
    if (error == 0 && context->retained == 0) error = FAKE_CUDA_CONTEXT_IS_DESTROYED;
    if (error == 0 && depth == (int)(sizeof stack / sizeof stack[0])) abort(); /* never popped */
    if (error == 0) stack[depth++] = context;
    return fake__leave(error);
}

lofi__cu_result cuCtxPopCurrent_v2(lofi__cu_context *context)
{
    lofi__cu_result error = fake__enter("cuCtxPopCurrent_v2");
    if (error == 0 && depth == 0) error = FAKE_CUDA_INVALID_CONTEXT;
    if (error == 0) {
        depth--;
        if (context != NULL) *context = stack[depth];
    }
    return fake__leave(error);
}

lofi__cu_context fake_cuda_context(int device)
{
    return &contexts[device];
}

int fake_cuda_retained(int device)
{
    fake__lock();
    const int retained = contexts[device].retained;
    fake__unlock();
    return retained;
}

int fake_cuda_depth(void)
{
    return depth;
}

/* ---- captures ---- */

static _Thread_local int is_capturing;
static _Thread_local int capture_mode;

lofi__cu_result cuThreadExchangeStreamCaptureMode(int *mode)
{
    lofi__cu_result error = fake__enter("cuThreadExchangeStreamCaptureMode");
    if (error == 0 && (*mode < 0 || *mode > 2)) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0) {
        const int before = capture_mode;
        capture_mode = *mode;
        *mode = before;
    }
    return fake__leave(error);
}

lofi__cu_result fake__unsafe(void)
{
    return is_capturing && capture_mode != LOFI__CU_CAPTURE_RELAXED ? FAKE_CUDA_CAPTURE_UNSUPPORTED
                                                                    : 0;
}

void fake_cuda_capture(int is_on)
{
    is_capturing = is_on;
}

/* ---- memory ---- */

#define ALIGNMENT 256

static struct allocation {
    struct allocation *next;
    char *memory;
    size_t bytes;
    fake_cuda_kind kind;
    int device;
} * allocations;

static struct {
    size_t now, most;
} bytes_on[FAKE_CUDA_DEVICES];

static void count_bytes(const struct allocation *a, int is_freed)
{
    if (a->kind == FAKE_CUDA_HOST || !is_device(a->device)) return;
    bytes_on[a->device].now += is_freed ? 0 - a->bytes : a->bytes;
    if (bytes_on[a->device].now > bytes_on[a->device].most)
        bytes_on[a->device].most = bytes_on[a->device].now;
}

/* The allocation that has the first byte. */
static const struct allocation *find(lofi__cu_address address)
{
    const char *memory = (const char *)(uintptr_t)address;
    for (const struct allocation *a = allocations; a != NULL; a = a->next)
        if ((uintptr_t)memory >= (uintptr_t)a->memory &&
            (uintptr_t)memory - (uintptr_t)a->memory < a->bytes)
            return a;
    return NULL;
}

static int holds(const struct allocation *a, lofi__cu_address address, size_t bytes)
{
    return bytes <= a->bytes - (size_t)(address - (uintptr_t)a->memory);
}

void *fake_cuda_alloc(fake_cuda_kind kind, int device, size_t bytes)
{
    const size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    struct allocation *a = malloc(sizeof *a);
    char *memory = bytes > 0 && whole >= bytes ? aligned_alloc(ALIGNMENT, whole) : NULL;

    if (a == NULL || memory == NULL) {
        free(a);
        free(memory);
        return NULL;
    }
    memset(memory, 0xa5, whole);
    fake__lock();
    *a = (struct allocation){allocations, memory, bytes, kind, device};
    allocations = a;
    count_bytes(a, 0);
    fake__unlock();
    return memory;
}

/* 0, or what CUDA says of memory that it does not know. */
static lofi__cu_result release(lofi__cu_address memory)
{
    struct allocation **link = &allocations;
    while (*link != NULL && (uintptr_t)(*link)->memory != memory)
        link = &(*link)->next;
    struct allocation *a = *link;
    if (a == NULL) return FAKE_CUDA_INVALID_VALUE;
    *link = a->next;
    count_bytes(a, 1);
    free(a->memory);
    free(a);
    return 0;
}

void fake_cuda_free(void *memory)
{
    fake__lock();
    if (memory != NULL && release((uintptr_t)memory) != 0) abort(); /* not the fake's */
    fake__unlock();
}

lofi__cu_result cuMemAlloc_v2(lofi__cu_address *memory, size_t bytes)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = fake__enter("cuMemAlloc_v2");
    if (error == 0) error = fake__current(&context);
    if (error == 0) error = fake__unsafe();
    if (error == 0 && bytes == 0) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0) {
        void *fresh = fake_cuda_alloc(FAKE_CUDA_DEVICE, context->device, bytes);
        if (fresh == NULL) error = FAKE_CUDA_OUT_OF_MEMORY;
        if (fresh != NULL) *memory = (uintptr_t)fresh;
    }
    return fake__leave(error);
}

lofi__cu_result cuMemFree_v2(lofi__cu_address memory)
{
    lofi__cu_context context = NULL;
    lofi__cu_result error = fake__enter("cuMemFree_v2");
    if (error == 0) error = fake__current(&context);
    if (error == 0) error = fake__unsafe();
    if (error == 0 && memory != 0) error = release(memory);
    return fake__leave(error);
}

lofi__cu_result cuPointerGetAttribute(void *value, int attribute, lofi__cu_address pointer)
{
    lofi__cu_result error = fake__enter("cuPointerGetAttribute");
    const struct allocation *a = find(pointer);
    if (error == 0 && a == NULL) error = FAKE_CUDA_INVALID_VALUE;
    if (error == 0 && attribute == LOFI__CU_POINTER_CONTEXT)
        *(lofi__cu_context *)value = a->kind == FAKE_CUDA_POOL ? NULL : &contexts[a->device];
    else if (error == 0 && attribute == LOFI__CU_POINTER_MEMORY_TYPE)
        *(unsigned *)value =
            a->kind == FAKE_CUDA_HOST ? LOFI__CU_MEMORY_HOST : LOFI__CU_MEMORY_DEVICE;
    else if (error == 0 && attribute == LOFI__CU_POINTER_DEVICE_ORDINAL)
        *(int *)value = a->device;
    else if (error == 0)
        error = FAKE_CUDA_INVALID_VALUE;
    return fake__leave(error);
}

lofi__cu_result fake__check_copy(lofi__cu_address memory, size_t bytes)
{
    const struct allocation *a = find(memory);
    return a == NULL || holds(a, memory, bytes) ? 0 : FAKE_CUDA_INVALID_VALUE;
}

int fake_cuda_is_device(const void *memory, size_t bytes)
{
    fake__lock();
    const struct allocation *a = find((uintptr_t)memory);
    const int is = a != NULL && holds(a, (uintptr_t)memory, bytes);
    fake__unlock();
    return is;
}

void fake_cuda_count_bytes(int device)
{
    fake__lock();
    bytes_on[device].now = bytes_on[device].most = 0;
    fake__unlock();
}

size_t fake_cuda_most_bytes(int device)
{
    fake__lock();
    const size_t most = bytes_on[device].most;
    fake__unlock();
    return most;
}

struct fake_cuda_held fake_cuda_held(void)
{
    struct fake_cuda_held held = {0, 0, 0, 0, 0};
    fake__lock();
    for (const struct allocation *a = allocations; a != NULL; a = a->next)
        held.allocations++;
    for (int i = 0; i < FAKE_CUDA_DEVICES; i++)
        held.contexts += contexts[i].retained;
    fake__count_streams(&held);
    fake__count_modules(&held);
    fake__unlock();
    return held;
}
