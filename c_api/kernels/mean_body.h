/* SPDX-License-Identifier: MIT */
/*
 * The kernels of lofi_mean, in plain C that the compiler vectorises: each table compiles them with
 * the instructions of its file. Each step has one exact result, whatever the instructions.
 *
 * The build forbids fused multiply-add (-ffp-contract=off), which rounds once where the formula
 * in lofi.h rounds twice, and would make bits depend on the CPU.
 */
#ifndef LOFI_KERNELS_MEAN_BODY_H
#define LOFI_KERNELS_MEAN_BODY_H

#include "kernels/divisor.h"
#include "kernels/float8.h"
#include "kernels/halffloat.h"
#include "kernels/kernels.h"

static void begin_f64(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const double *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] = weight * x[i];
}

static void add_f64(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const double *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] += weight * x[i];
}

static void begin_f32(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const float *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] = weight * (double)x[i];
}

static void add_f32(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const float *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] += weight * (double)x[i];
}

static void begin_f16(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const uint16_t *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] = weight * lofi__f16_to_f64(x[i]);
}

static void add_f16(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const uint16_t *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] += weight * lofi__f16_to_f64(x[i]);
}

static void begin_bf16(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const uint16_t *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] = weight * lofi__bf16_to_f64(x[i]);
}

static void add_bf16(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const uint16_t *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] += weight * lofi__bf16_to_f64(x[i]);
}

static void begin_e4m3(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const uint8_t *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] = weight * lofi__e4m3_to_f64(x[i]);
}

static void add_e4m3(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const uint8_t *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] += weight * lofi__e4m3_to_f64(x[i]);
}

static void begin_e5m2(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const uint8_t *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] = weight * lofi__e5m2_to_f64(x[i]);
}

static void add_e5m2(double *restrict sum, const void *restrict in, double weight, size_t count)
{
    const uint8_t *x = in;
    for (size_t i = 0; i < count; i++)
        sum[i] += weight * lofi__e5m2_to_f64(x[i]);
}

static void divide(double *sum, double divisor, size_t count)
{
    const double reciprocal = 1.0 / divisor;

    if (divisor == 1.0) return;
    if (lofi__is_exact_divisor(divisor)) {
        for (size_t i = 0; i < count; i++)
            sum[i] *= reciprocal;
    } else {
        for (size_t i = 0; i < count; i++)
            sum[i] /= divisor;
    }
}

static void narrow_f64(void *restrict out, const double *restrict sum, size_t count)
{
    memcpy(out, sum, count * sizeof *sum);
}

static void narrow_f32(void *restrict out, const double *restrict sum, size_t count)
{
    float *y = out;
    for (size_t i = 0; i < count; i++)
        y[i] = (float)sum[i];
}

static void narrow_f16(void *restrict out, const double *restrict sum, size_t count)
{
    uint16_t *y = out;
    for (size_t i = 0; i < count; i++)
        y[i] = lofi__f64_to_f16(sum[i]);
}

static void narrow_bf16(void *restrict out, const double *restrict sum, size_t count)
{
    uint16_t *y = out;
    for (size_t i = 0; i < count; i++)
        y[i] = lofi__f64_to_bf16(sum[i]);
}

static void narrow_e4m3(void *restrict out, const double *restrict sum, size_t count)
{
    uint8_t *y = out;
    for (size_t i = 0; i < count; i++)
        y[i] = lofi__f64_to_e4m3(sum[i]);
}

static void narrow_e5m2(void *restrict out, const double *restrict sum, size_t count)
{
    uint8_t *y = out;
    for (size_t i = 0; i < count; i++)
        y[i] = lofi__f64_to_e5m2(sum[i]);
}

/* x - x is zero for every finite number and NaN for all others; a sum of such stays NaN. One
 * order of additions is as good as another here, but only integers let the compiler reorder. */
static int any_nonfinite_f64(const void *data, size_t count)
{
    const double *x = data;
    unsigned found = 0;
    for (size_t i = 0; i < count; i++)
        found |= !(x[i] - x[i] == 0.0);
    return found != 0;
}

static int any_nonfinite_f32(const void *data, size_t count)
{
    const float *x = data;
    unsigned found = 0;
    for (size_t i = 0; i < count; i++)
        found |= !(x[i] - x[i] == 0.0f);
    return found != 0;
}

static int any_nonfinite_f16(const void *data, size_t count)
{
    const uint16_t *x = data;
    unsigned found = 0;
    for (size_t i = 0; i < count; i++)
        found |= (x[i] & 0x7c00u) == 0x7c00u;
    return found != 0;
}

static int any_nonfinite_bf16(const void *data, size_t count)
{
    const uint16_t *x = data;
    unsigned found = 0;
    for (size_t i = 0; i < count; i++)
        found |= (x[i] & 0x7f80u) == 0x7f80u;
    return found != 0;
}

static int any_nonfinite_e4m3(const void *data, size_t count)
{
    const uint8_t *x = data;
    unsigned found = 0;
    for (size_t i = 0; i < count; i++)
        found |= (x[i] & 0x7fu) == 0x7fu;
    return found != 0;
}

static int any_nonfinite_e5m2(const void *data, size_t count)
{
    const uint8_t *x = data;
    unsigned found = 0;
    for (size_t i = 0; i < count; i++)
        found |= (x[i] & 0x7fu) >= 0x7cu;
    return found != 0;
}

#endif /* LOFI_KERNELS_MEAN_BODY_H */
