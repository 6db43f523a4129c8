/* SPDX-License-Identifier: MIT */
#include "average/host_memory.h"

#include "core/mem.h"

#include <string.h>

static lofi_status check(void *state, const void *data)
{
    (void)state, (void)data;
    return LOFI_OK;
}

static lofi_status allocate(void *state, size_t bytes, void **out)
{
    (void)state;
    *out = lofi__mem_create(bytes, 1);
    return *out != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

static void release(void *state, void *memory)
{
    (void)state;
    lofi__mem_destroy(memory);
}

static lofi_status copy(void *state, void *to, const void *from, size_t bytes)
{
    (void)state;
    memcpy(to, from, bytes);
    return LOFI_OK;
}

static lofi_status zero(void *state, void *to, size_t bytes)
{
    (void)state;
    memset(to, 0, bytes);
    return LOFI_OK;
}

static lofi_status mean(void *state, lofi_dtype dtype, void *out, const void *const *in,
                        const double *weights, int inputs, size_t count)
{
    (void)state;
    return lofi_mean(dtype, out, in, weights, inputs, count);
}

static lofi_status wait(void *state)
{
    (void)state;
    return LOFI_OK;
}

const struct lofi__memory lofi__host_memory = {
    .name = "host memory",
    .check = check,
    .allocate = allocate,
    .release = release,
    .copy = copy,
    .zero = zero,
    .mean = mean,
    .wait = wait,
};
