/* SPDX-License-Identifier: MIT */
/*
 * The mean of several buffers, and the search for what is not finite.
 *
 * Inputs are read block by block, so that the doubles of a block stay in the first cache and
 * memory sees each input once and the output once. Because a block is read from all inputs
 * before it is written, the output may be one of them. No threads: the caller has the cores and
 * may cut the elements as it likes, each has its own result.
 */
#include "core/options.h"
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

lofi_status lofi__mean_weights(const double *weights, int inputs, int are_raw, double *sum)
{
    double total = 0;
    int has_any = 0;

    for (int i = 0; i < inputs; i++) {
        double weight = weights != NULL ? weights[i] : 1.0;
        if (!is_finite(weight) || (weight < 0 && !are_raw)) {
            lofi_set_error("weight %d is %g: weights must be finite%s", i, weight,
                           are_raw ? "" : " and not negative");
            return LOFI_INVALID;
        }
        total += weight;
        has_any |= weight != 0;
    }
    if (are_raw && !has_any) {
        lofi_set_error("the %d weights are all 0: nothing is left of the inputs", inputs);
        return LOFI_INVALID;
    }
    if (!(total > 0 || are_raw) || !is_finite(total)) {
        lofi_set_error("the %d weights add up to %g: their sum must be finite and above zero",
                       inputs, total);
        return LOFI_INVALID;
    }
    *sum = total;
    return LOFI_OK;
}

static const char *element(const void *data, lofi_dtype dtype, size_t index)
{
    return (const char *)data + index * lofi_dtype_bytes(dtype);
}

void lofi__mean_run(const struct lofi__kernels *kernels, const lofi_mix *mix, double weight_sum,
                    void *out, const void *const *in, size_t count)
{
    const double share = mix->raw_weights ? weight_sum : 1.0; /* that is taken from the base */
    double sum[BLOCK_COUNT], mixed[BLOCK_COUNT];

    for (size_t begin = 0; begin < count; begin += BLOCK_COUNT) {
        const size_t n = count - begin < BLOCK_COUNT ? count - begin : BLOCK_COUNT;
        const double *result = sum;

        for (int i = 0; i < mix->inputs; i++) {
            const lofi_dtype dtype = mix->in_dtypes != NULL ? mix->in_dtypes[i] : mix->out_dtype;
            const lofi__add_fn add = i == 0 ? kernels->begin[dtype] : kernels->add[dtype];
            add(sum, element(in[i], dtype, begin), mix->weights != NULL ? mix->weights[i] : 1.0, n);
        }
        if (!mix->raw_weights) kernels->divide(sum, weight_sum, n);
        if (mix->base != NULL) {
            const char *base = element(mix->base, mix->base_dtype, begin);
            kernels->begin[mix->base_dtype](mixed, base, 1.0 - mix->alpha * share, n);
            kernels->add[LOFI_F64](mixed, sum, mix->alpha, n);
            result = mixed;
        }
        kernels->narrow[mix->out_dtype]((char *)out + begin * lofi_dtype_bytes(mix->out_dtype),
                                        result, n);
    }
}

lofi_status lofi_mean(lofi_dtype dtype, void *out, const void *const *in, const double *weights,
                      int inputs, size_t count)
{
    double weight_sum = 0;

    lofi_status st = check_dtype(dtype);
    if (st == LOFI_OK) st = check_buffers(out, in, inputs, count, lofi_dtype_bytes(dtype));
    if (st == LOFI_OK) st = lofi__mean_weights(weights, inputs, 0, &weight_sum);
    if (st != LOFI_OK || count == 0) return st;

    if (is_float(dtype)) {
        lofi_mix mix = LOFI_MIX_INIT;
        mix.out_dtype = dtype;
        mix.weights = weights;
        mix.inputs = inputs;
        lofi__mean_run(lofi__kernels_get(), &mix, weight_sum, out, in, count);
    } else if (out != in[0]) {
        memcpy(out, in[0], count * lofi_dtype_bytes(dtype));
    }
    return LOFI_OK;
}

static lofi_status check_operand(const char *name, int index, const void *data, lofi_dtype dtype,
                                 size_t count)
{
    if (!is_float(dtype)) {
        lofi_set_error("a mix of %s: it has no mean", lofi_dtype_name(dtype));
        return LOFI_INVALID;
    }
    return count > 0 ? check_buffer(name, index, data, lofi_dtype_bytes(dtype)) : LOFI_OK;
}

static lofi_status check_mix(const lofi_mix *mix, const void *out, const void *const *in,
                             size_t count)
{
    if (mix->inputs < 1 || in == NULL) {
        lofi_set_error("a mix without inputs");
        return LOFI_INVALID;
    }
    lofi_status st = check_operand("output", 0, out, mix->out_dtype, count);
    if (st == LOFI_OK && mix->base != NULL)
        st = check_operand("base", 0, mix->base, mix->base_dtype, count);
    for (int i = 0; i < mix->inputs && st == LOFI_OK; i++)
        st = check_operand("input", i, in[i],
                           mix->in_dtypes != NULL ? mix->in_dtypes[i] : mix->out_dtype, count);
    return st;
}

lofi_status lofi_mean_mixed(const lofi_mix *given, void *out, const void *const *in, size_t count)
{
    lofi_mix mix = LOFI_MIX_INIT;
    double weight_sum = 0;

    lofi_status st = lofi__options_read(&mix, sizeof mix, given, "LOFI_MIX_INIT");
    if (st == LOFI_OK) st = check_mix(&mix, out, in, count);
    if (st == LOFI_OK)
        st = lofi__mean_weights(mix.weights, mix.inputs, mix.raw_weights, &weight_sum);
    if (st == LOFI_OK) lofi__mean_run(lofi__kernels_get(), &mix, weight_sum, out, in, count);
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
