/* SPDX-License-Identifier: MIT */
/*
 * float16 and bfloat16, to and from double.
 *
 * From double each is rounded once. The usual way through float rounds twice: a double just
 * above a tie becomes the tie in float, and then goes to the even neighbour, the wrong one.
 *
 * To round a double to fewer bits, a number is added and taken away again whose last bit weighs
 * as much as the last bit to keep: 2^42 times the power of two below the value for float16's 11
 * bits, 2^45 times for bfloat16's 8. The addition rounds to nearest even, all else is exact, also
 * the way through float afterwards. Held above the smallest normal number, the power of two makes
 * the same line right for subnormals. Integer arithmetic on the 64 bits does it as well, but
 * baseline x86-64 has no vector comparison of such integers; this form runs in vectors anywhere.
 * Values are chosen by selection, not by branches, for the same reason.
 */
#ifndef LOFI_KERNELS_HALFFLOAT_H
#define LOFI_KERNELS_HALFFLOAT_H

#include <stdint.h>
#include <string.h>

/* The same arithmetic on a GPU: c_api/cuda/mean.cu. */
#if defined(__CUDACC__)
#define LOFI__INLINE static __host__ __device__ __forceinline__
#else
#define LOFI__INLINE static inline
#endif

LOFI__INLINE uint64_t lofi__f64_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

LOFI__INLINE double lofi__f64_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

LOFI__INLINE uint32_t lofi__f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

LOFI__INLINE float lofi__f32_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

LOFI__INLINE double lofi__f16_to_f64(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const int32_t magnitude = half & 0x7fff;
    /* exponents move from bias 15 to bias 127; that of infinities and NaNs from 31 to 255 */
    const uint32_t rebias = magnitude < 0x7c00 ? 112 : 224;
    const uint32_t normal = ((uint32_t)magnitude << 13) + (rebias << 23);
    const uint32_t subnormal = lofi__f32_bits((float)magnitude * 0x1p-24f);
    return (double)lofi__f32_of(sign | (magnitude < 0x0400 ? subnormal : normal));
}

LOFI__INLINE double lofi__bf16_to_f64(uint16_t brain)
{
    return (double)lofi__f32_of((uint32_t)brain << 16); /* the upper half of a float */
}

/* `absolute` rounded to the unit 2^-52 * `shift` * the power of two below it, which is taken to be
 * at least `smallest` and at most `largest`; the upper bound lets infinity pass. */
LOFI__INLINE double lofi__round_bits(double absolute, double smallest, double largest, double shift)
{
    double power = lofi__f64_of(lofi__f64_bits(absolute) & UINT64_C(0x7ff0000000000000));
    power = power < smallest ? smallest : power;
    power = power > largest ? largest : power;
    return (absolute + power * shift) - power * shift;
}

LOFI__INLINE uint16_t lofi__f64_to_f16(double value)
{
    const uint64_t bits = lofi__f64_bits(value);
    const uint32_t sign = (uint32_t)(bits >> 32) >> 16 & 0x8000;
    const double absolute = lofi__f64_of(bits & UINT64_C(0x7fffffffffffffff));
    const float rounded = (float)lofi__round_bits(absolute, 0x1p-14, 0x1p15, 0x1p42);
    const int32_t wide = (int32_t)lofi__f32_bits(rounded);
    /* The number is held in range because it is converted also where the result is not taken. */
    const float small = rounded < 0x1p-14f ? rounded : 0.0f;
    const int32_t subnormal = (int32_t)(small * 0x1p24f);
    const int32_t normal = (wide - (112 << 23)) >> 13;
    int32_t half = wide < 0x38800000 ? subnormal : normal; /* 2^-14 */

    half = wide >= 0x47800000 ? 0x7c00 : half; /* 2^16: rounded out of range */
    half = wide > 0x7f800000 ? 0x7e00 : half;  /* NaN: one for all */
    return (uint16_t)(sign | (uint32_t)half);
}

LOFI__INLINE uint16_t lofi__f64_to_bf16(double value)
{
    const uint64_t bits = lofi__f64_bits(value);
    const uint32_t sign = (uint32_t)(bits >> 32) >> 16 & 0x8000;
    const double absolute = lofi__f64_of(bits & UINT64_C(0x7fffffffffffffff));
    const float rounded = (float)lofi__round_bits(absolute, 0x1p-126, 0x1p127, 0x1p45);
    const int32_t wide = (int32_t)lofi__f32_bits(rounded);
    const int32_t brain = wide > 0x7f800000 ? 0x7fc0 : wide >> 16;
    return (uint16_t)(sign | (uint32_t)brain);
}

#endif /* LOFI_KERNELS_HALFFLOAT_H */
