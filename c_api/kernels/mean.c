/* SPDX-License-Identifier: MIT */
/*
 * The mean of several buffers, and the search for what is not finite.
 *
 * Inputs are read block by block, so that the doubles of a block stay in the first cache and
 * memory sees each input once and the output once. Because a block is read from all inputs
 * before it is written, the output may be one of them. No threads: the caller has the cores and
 * may cut the elements as it likes, each has its own result.
 */
#include "core/mem.h"
#include "kernels/kernels.h"

#include <string.h>

#define BLOCK_COUNT 1024

static int is_float(lofi_dtype dtype)
{
    return (int)dtype >= 0 && dtype < LOFI_DTYPE_COUNT && lofi__kernels_scalar.begin[dtype] != NULL;
}

static lofi_status check_dtype(lofi_dtype dtype)
{
    if (lofi_dtype_bytes(dtype) != 0) return LOFI_OK;
    lofi_set_error("dtype is %d: lofi.h lists the values 0 to %d", (int)dtype,
                   LOFI_DTYPE_COUNT - 1);
    return LOFI_INVALID;
}

static lofi_status check_buffer(const char *name, int index, const void *data, size_t bytes)
{
    if (data != NULL && (uintptr_t)data % bytes == 0) return LOFI_OK;
    if (data == NULL)
        lofi_set_error("%s %d of a mean is NULL", name, index);
    else
        lofi_set_error("%s %d of a mean lies at %p: it has to be aligned to its elements of %zu "
                       "bytes",
                       name, index, data, bytes);
    return LOFI_INVALID;
}

static lofi_status check_buffers(const void *out, const void *const *in, int inputs, size_t count,
                                 size_t bytes)
{
    if (inputs < 1 || in == NULL) {
        lofi_set_error("a mean of %d inputs%s: it needs at least one", inputs,
                       in == NULL ? " (their list is NULL)" : "");
        return LOFI_INVALID;
    }
    if (count > SIZE_MAX / bytes) {
        lofi_set_error("%zu elements of %zu bytes are more than an address space", count, bytes);
        return LOFI_INVALID;
    }
    if (count == 0) return LOFI_OK; /* nothing is read: the pointers may be anything */
    lofi_status st = check_buffer("output", 0, out, bytes);
    for (int i = 0; i < inputs && st == LOFI_OK; i++)
        st = check_buffer("input", i, in[i], bytes);
    return st;
}

static int is_finite(double value)
{
    return value - value == 0;
}

lofi_status lofi__mean_weights(const double *weights, int inputs, double *sum)
{
    double total = 0;

    for (int i = 0; i < inputs; i++) {
        double weight = weights != NULL ? weights[i] : 1.0;
        if (!is_finite(weight) || weight < 0) {
            lofi_set_error("weight %d is %g: weights must be finite and not negative", i, weight);
            return LOFI_INVALID;
        }
        total += weight;
    }
    if (!(total > 0) || !is_finite(total)) {
        lofi_set_error("the %d weights add up to %g: their sum must be finite and above zero",
                       inputs, total);
        return LOFI_INVALID;
    }
    *sum = total;
    return LOFI_OK;
}

/* The doubles of one block: the mean, or the mean mixed with the base into `mixed`. */
static const double *mean_block(const struct lofi__mean *mean, double *sum, double *mixed,
                                const void *const *in, size_t begin, size_t n)
{
    const struct lofi__kernels *kernels = mean->kernels;

    for (int i = 0; i < mean->inputs; i++) {
        const lofi_dtype dtype = mean->in != NULL ? mean->in[i] : mean->out;
        const lofi__add_fn add = i == 0 ? kernels->begin[dtype] : kernels->add[dtype];
        add(sum, (const char *)in[i] + begin * lofi_dtype_bytes(dtype),
            mean->weights != NULL ? mean->weights[i] : 1.0, n);
    }
    kernels->divide(sum, mean->weight_sum, n);
    if (!mean->has_base) return sum;
    const lofi_dtype dtype = mean->in != NULL ? mean->in[mean->inputs] : mean->out;
    const char *base = (const char *)in[mean->inputs] + begin * lofi_dtype_bytes(dtype);
    kernels->begin[dtype](mixed, base, 1.0 - mean->alpha, n);
    kernels->add[LOFI_F64](mixed, sum, mean->alpha, n);
    return mixed;
}

void lofi__mean_run(const struct lofi__mean *mean, void *out, const void *const *in, size_t count)
{
    const size_t bytes = lofi_dtype_bytes(mean->out);
    double sum[BLOCK_COUNT], mixed[BLOCK_COUNT];

    for (size_t begin = 0; begin < count; begin += BLOCK_COUNT) {
        size_t n = count - begin < BLOCK_COUNT ? count - begin : BLOCK_COUNT;
        const double *result = mean_block(mean, sum, mixed, in, begin, n);
        mean->kernels->narrow[mean->out]((char *)out + begin * bytes, result, n);
    }
}

lofi_status lofi_mean(lofi_dtype dtype, void *out, const void *const *in, const double *weights,
                      int inputs, size_t count)
{
    double weight_sum = 0;

    lofi_status st = check_dtype(dtype);
    if (st == LOFI_OK) st = check_buffers(out, in, inputs, count, lofi_dtype_bytes(dtype));
    if (st == LOFI_OK) st = lofi__mean_weights(weights, inputs, &weight_sum);
    if (st != LOFI_OK || count == 0) return st;

    if (is_float(dtype)) {
        const struct lofi__mean mean = {.kernels = lofi__kernels_get(),
                                        .out = dtype,
                                        .weights = weights,
                                        .weight_sum = weight_sum,
                                        .inputs = inputs};
        lofi__mean_run(&mean, out, in, count);
    } else if (out != in[0]) {
        memcpy(out, in[0], count * lofi_dtype_bytes(dtype));
    }
    return LOFI_OK;
}

static lofi_status check_mix(const lofi_mix *mix, const void *out, const void *const *in,
                             size_t count)
{
    if (mix == NULL || mix->size < sizeof *mix || mix->inputs < 1 || in == NULL) {
        lofi_set_error("a mix needs inputs, and its size set by LOFI_MIX_INIT");
        return LOFI_INVALID;
    }
    for (int i = -2; i < mix->inputs; i++) {
        const void *data = i == -2 ? out : i == -1 ? mix->base : in[i];
        const lofi_dtype dtype = i == -1                             ? mix->base_dtype
                                 : i == -2 || mix->in_dtypes == NULL ? mix->out_dtype
                                                                     : mix->in_dtypes[i];
        if (i == -1 && mix->base == NULL) continue;
        if (!is_float(dtype)) {
            lofi_set_error("a mix of %s: it has no mean", lofi_dtype_name(dtype));
            return LOFI_INVALID;
        }
        lofi_status st = count > 0 ? check_buffer(i == -2   ? "output"
                                                  : i == -1 ? "base"
                                                            : "input",
                                                  i < 0 ? 0 : i, data, lofi_dtype_bytes(dtype))
                                   : LOFI_OK;
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}

lofi_status lofi_mean_mixed(const lofi_mix *mix, void *out, const void *const *in, size_t count)
{
    struct lofi__mean mean = {.kernels = lofi__kernels_get()};

    lofi_status st = check_mix(mix, out, in, count);
    if (st == LOFI_OK) st = lofi__mean_weights(mix->weights, mix->inputs, &mean.weight_sum);
    if (st != LOFI_OK) return st;
    /* Inputs and base in one list, as the loop over blocks takes them. */
    const void **all = lofi__mem_create((size_t)mix->inputs + 1, sizeof *all);
    lofi_dtype *dtypes = lofi__mem_create((size_t)mix->inputs + 1, sizeof *dtypes);
    if (all == NULL || dtypes == NULL) st = LOFI_NO_MEMORY;
    for (int i = 0; i < mix->inputs && st == LOFI_OK; i++) {
        all[i] = in[i];
        dtypes[i] = mix->in_dtypes != NULL ? mix->in_dtypes[i] : mix->out_dtype;
    }
    if (st == LOFI_OK) {
        all[mix->inputs] = mix->base;
        dtypes[mix->inputs] = mix->base_dtype;
        mean.out = mix->out_dtype;
        mean.in = dtypes;
        mean.weights = mix->weights;
        mean.inputs = mix->inputs;
        mean.has_base = mix->base != NULL;
        mean.alpha = mix->alpha;
        lofi__mean_run(&mean, out, all, count);
    }
    lofi__mem_destroy(dtypes);
    lofi__mem_destroy(all);
    return st;
}

int64_t lofi_find_nonfinite(lofi_dtype dtype, const void *data, size_t count)
{
    const size_t bytes = lofi_dtype_bytes(dtype);
    const char *elements = data;

    if (!is_float(dtype)) return -1;
    lofi__nonfinite_fn any = lofi__kernels_get()->any_nonfinite[dtype];
    for (size_t begin = 0; begin < count; begin += BLOCK_COUNT) {
        size_t n = count - begin < BLOCK_COUNT ? count - begin : BLOCK_COUNT;
        if (!any(elements + begin * bytes, n)) continue;
        while (!any(elements + begin * bytes, 1))
            begin++;
        return (int64_t)begin;
    }
    return -1;
}
