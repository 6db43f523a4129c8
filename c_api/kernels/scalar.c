/* SPDX-License-Identifier: MIT */
/*
 * The reference kernels: they define the bits, on any CPU. For fold.h a "vector" is one element;
 * the conversions of 16-bit floats are those of the mean, which go through double and back
 * without a second rounding.
 */
#include "kernels/halffloat.h"
#include "kernels/kernels.h"

typedef double f64_vector;
typedef float f32_vector;
typedef uint64_t u64_vector;
typedef uint32_t u32_vector;
typedef uint8_t u8_vector;
typedef int64_t i64_vector;
typedef int32_t i32_vector;
typedef int8_t i8_vector;

#define SELECT(condition, x, y) ((condition) ? (x) : (y))

static void load_f16(const uint16_t *from, float *a, float *b)
{
    *a = (float)lofi__f16_to_f64(from[0]);
    *b = (float)lofi__f16_to_f64(from[1]);
}

static void store_f16(uint16_t *to, float a, float b)
{
    to[0] = lofi__f64_to_f16((double)a);
    to[1] = lofi__f64_to_f16((double)b);
}

static void load_bf16(const uint16_t *from, float *a, float *b)
{
    *a = (float)lofi__bf16_to_f64(from[0]);
    *b = (float)lofi__bf16_to_f64(from[1]);
}

static void store_bf16(uint16_t *to, float a, float b)
{
    to[0] = lofi__f64_to_bf16((double)a);
    to[1] = lofi__f64_to_bf16((double)b);
}

/* Portable C has no way around the caches. */
static void stream(void *restrict out, const void *restrict in, size_t bytes)
{
    memcpy(out, in, bytes);
}

#define KERNELS lofi__kernels_scalar
#define KERNELS_NAME "scalar"
#include "kernels/table.h"
