/* SPDX-License-Identifier: MIT */
/* The exchange's work on device memory, on the communicator's own stream, in line with its
 * collectives. */
#define _GNU_SOURCE
#include "transport/clock.h"
#include "transport/nccl_comm.h"

static const char where[] = "an average on the device";

static lofi__cu_address address_of(const void *memory)
{
    return (lofi__cu_address)(uintptr_t)memory;
}

static lofi_status check(void *state, const void *data)
{
    const struct lofi__nccl *nccl = state;

    lofi_status st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    st = lofi__nccl_check_data(nccl, "an average: the data", data);
    lofi__nccl_leave(nccl);
    return st;
}

static lofi_status allocate(void *state, size_t bytes, void **out)
{
    const struct lofi__nccl *nccl = state;
    lofi__cu_address memory = 0;

    lofi_status st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    const lofi__cu_result result = nccl->cuda->MemAlloc(&memory, bytes);
    lofi__nccl_leave(nccl);
    if (result == LOFI__CU_OUT_OF_MEMORY) {
        lofi_set_error("%s: the device has no %zu bytes left; give it less scratch memory", where,
                       bytes);
        return LOFI_NO_MEMORY;
    }
    st = lofi__driver_check(nccl->cuda, result, where);
    if (st == LOFI_OK) *out = (void *)(uintptr_t)memory;
    return st;
}

static void release(void *state, void *memory)
{
    const struct lofi__nccl *nccl = state;

    if (memory == NULL || lofi__nccl_enter(nccl) != LOFI_OK) return;
    nccl->cuda->MemFree(address_of(memory));
    lofi__nccl_leave(nccl);
}

static lofi_status copy(void *state, void *to, const void *from, size_t bytes)
{
    const struct lofi__nccl *nccl = state;

    lofi_status st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    st = lofi__driver_check(
        nccl->cuda, nccl->cuda->MemcpyAsync(address_of(to), address_of(from), bytes, nccl->stream),
        where);
    lofi__nccl_leave(nccl);
    return st;
}

static lofi_status zero(void *state, void *to, size_t bytes)
{
    const struct lofi__nccl *nccl = state;

    lofi_status st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    st = lofi__driver_check(
        nccl->cuda, nccl->cuda->MemsetD8Async(address_of(to), 0, bytes, nccl->stream), where);
    lofi__nccl_leave(nccl);
    return st;
}

static lofi_status mean(void *state, lofi_dtype dtype, void *out, const void *const *in,
                        const double *weights, int inputs, size_t count)
{
    const struct lofi__nccl *nccl = state;
    const size_t stride = inputs > 1 ? (size_t)((const char *)in[1] - (const char *)in[0]) : 0;

    lofi_status st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    st = lofi_cuda_mean(dtype, out, in[0], stride, inputs, weights, count, nccl->stream);
    lofi__nccl_leave(nccl);
    return st;
}

static lofi_status wait(void *state)
{
    struct lofi__nccl *nccl = state;
    lofi__cu_event event = NULL;

    lofi_status st = lofi__nccl_enter(nccl);
    if (st != LOFI_OK) return st;
    st = lofi__nccl_mark(nccl, &event);
    if (st == LOFI_OK) {
        st = lofi__driver_check(nccl->cuda, nccl->cuda->StreamWaitEvent(nccl->stream, event, 0),
                                where);
        if (st == LOFI_OK)
            st = lofi__nccl_wait(nccl, where, nccl->stream,
                                 lofi__now_ns() + INT64_C(1000000) * nccl->timeout_ms);
        lofi__nccl_unmark(nccl, event);
    }
    lofi__nccl_leave(nccl);
    return st;
}

const struct lofi__memory lofi__nccl_memory = {
    .name = "device memory",
    .check = check,
    .allocate = allocate,
    .release = release,
    .copy = copy,
    .zero = zero,
    .mean = mean,
    .wait = wait,
};
