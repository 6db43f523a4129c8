/* SPDX-License-Identifier: MIT */
/*
 * The 8-bit floats E4M3 (float8_e4m3fn) and E5M2, to and from double.
 *
 * Both are read as float16: E5M2 is its upper byte, and E4M3 has the same layout two bits further
 * down with exponents smaller by 8, subnormals included. From double each is rounded once, as
 * halffloat.h does it. Tables of 256 values would be as short, but do not run in vectors.
 *
 * Out of range is as in torch 2.15: E5M2 has infinities; E4M3 has none, and what lies beyond 448,
 * its largest number, infinity included, becomes 448. (Earlier releases of torch made it NaN.)
 */
#ifndef LOFI_KERNELS_FLOAT8_H
#define LOFI_KERNELS_FLOAT8_H

#include "kernels/halffloat.h"

LOFI__INLINE double lofi__e4m3_to_f64(uint8_t byte)
{
    const uint32_t magnitude = byte & 0x7f;
    const uint32_t half = (uint32_t)(byte & 0x80) << 8 | magnitude << 7;
    /* the one pattern that is NaN becomes one of float16 */
    return lofi__f16_to_f64((uint16_t)(half | (magnitude == 0x7f ? 0x7e00 : 0))) * 0x1p8;
}

LOFI__INLINE double lofi__e5m2_to_f64(uint8_t byte)
{
    return lofi__f16_to_f64((uint16_t)(byte << 8));
}

LOFI__INLINE uint8_t lofi__f64_to_e4m3(double value)
{
    const uint64_t bits = lofi__f64_bits(value);
    const uint32_t sign = (uint32_t)(bits >> 56) & 0x80;
    const double absolute = lofi__f64_of(bits & UINT64_C(0x7fffffffffffffff));
    const float rounded = (float)lofi__round_bits(absolute, 0x1p-6, 0x1p8, 0x1p49);
    const int32_t wide = (int32_t)lofi__f32_bits(rounded);
    /* The number is held in range because it is converted also where the result is not taken. */
    const float small = rounded < 0x1p-6f ? rounded : 0.0f;
    const int32_t subnormal = (int32_t)(small * 0x1p9f);
    const int32_t normal = (wide - (120 << 23)) >> 20;
    int32_t byte = wide < 0x3c800000 ? subnormal : normal; /* 2^-6 */

    byte = wide > 0x43e00000 ? 0x7e : byte; /* beyond 448 */
    byte = wide > 0x7f800000 ? 0x7f : byte; /* NaN */
    return (uint8_t)(sign | (uint32_t)byte);
}

LOFI__INLINE uint8_t lofi__f64_to_e5m2(double value)
{
    const uint64_t bits = lofi__f64_bits(value);
    const double absolute = lofi__f64_of(bits & UINT64_C(0x7fffffffffffffff));
    const double rounded = lofi__round_bits(absolute, 0x1p-14, 0x1p15, 0x1p50);
    const uint32_t sign = (uint32_t)(bits >> 56) & 0x80;
    /* exact: three significant bits, in the range of float16 or beyond it */
    const uint32_t byte = (uint32_t)lofi__f64_to_f16(rounded) >> 8;
    return (uint8_t)(sign | byte);
}

#endif /* LOFI_KERNELS_FLOAT8_H */
