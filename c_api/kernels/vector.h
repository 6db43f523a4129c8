/* SPDX-License-Identifier: MIT */
/*
 * Vectors of VECTOR_BYTES bytes for fold.h, in the notation of gcc and clang: operators work on
 * all lanes, and the compiler has the instructions, or several where the CPU has none.
 */
#ifndef LOFI_KERNELS_VECTOR_H
#define LOFI_KERNELS_VECTOR_H

#include <stdint.h>
#include <string.h>

typedef double f64_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef float f32_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t u64_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t u32_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint8_t u8_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t i64_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t i32_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int8_t i8_vector __attribute__((vector_size(VECTOR_BYTES)));

/* A comparison gives all ones or all zeros in each lane. (?: takes vectors in C++ only.) */
#define SELECT(mask, x, y) ((VECTOR)(((BITS)(mask) & (BITS)(x)) | (~(BITS)(mask) & (BITS)(y))))

/* Two bfloat16 are the halves of a word: each is widened and rounded where it lies. Which of them
 * is the first does not matter, and nothing moves between lanes. */
static inline void load_bf16(const uint16_t *from, f32_vector *a, f32_vector *b)
{
    u32_vector x;
    memcpy(&x, from, sizeof x);
    *a = (f32_vector)(x << 16);
    *b = (f32_vector)(x & 0xffff0000);
}

/*
 * `x` rounded to its upper half, to nearest even; the lower half is left over. That of a NaN is
 * zero, so that a NaN stays one: it comes from a bfloat16 (an operation hands on the NaN of an
 * operand, made quiet) or from an operation that made it, on x86 and on Arm; fold_body.h sees to
 * the factor.
 *
 * By integers: the instruction of AVX512_BF16 (vcvtneps2bf16) takes subnormals for zeros and
 * makes zeros of them, whatever the environment says, and would give other bits.
 */
static inline u32_vector round_bf16(f32_vector x)
{
    const u32_vector bits = (u32_vector)x;
    return bits + 0x7fff + (bits >> 16 & 1);
}

static inline void store_bf16(uint16_t *to, f32_vector a, f32_vector b)
{
    const u32_vector x = round_bf16(a) >> 16 | (round_bf16(b) & 0xffff0000);
    memcpy(to, &x, sizeof x);
}

#endif /* LOFI_KERNELS_VECTOR_H */
