/* SPDX-License-Identifier: MIT */
/*
 * The mean on a GPU: the parameters of its kernels, and what one thread of theirs does, in C that
 * nvcc compiles too. So the arithmetic, the loops and the tails are tested without a GPU; mean.cu
 * only adds which thread is which.
 *
 * An element is read as an integer of its size, and two of 64 bits are a pack: what a thread loads
 * at once, and what one instruction of a GPU loads.
 */
#ifndef LOFI_CUDA_MEAN_H
#define LOFI_CUDA_MEAN_H

#include "kernels/float8.h"
#include "kernels/halffloat.h"
#include "lofi.h"

#include <stdint.h>
#include <string.h>

#define LOFI__MEAN_PACK_BYTES 16u
#define LOFI__MEAN_BLOCK 256u /* threads */

/* By value, for all kernels: it may have 4096 bytes, as on GPUs before Volta. */
struct lofi__cuda_mean {
    const char *in;
    char *out;
    uint64_t stride_bytes;
    uint64_t count;
    uint64_t packs;    /* so many packs from the first element on are aligned in all buffers */
    double divisor;    /* the sum of the weights */
    double reciprocal; /* not 0: to multiply by it gives the bits of the quotient */
    int32_t inputs;
    double weights[LOFI_CUDA_MEAN_INPUTS];
};

#if defined(__CUDACC__)
#define LOFI__UNROLL _Pragma("unroll")
#else
#define LOFI__UNROLL
#endif

LOFI__INLINE void lofi__mean_divide(const struct lofi__cuda_mean *mean, double *sum, int count)
{
    if (mean->reciprocal != 0) {
        LOFI__UNROLL
        for (int k = 0; k < count; k++)
            sum[k] *= mean->reciprocal;
    } else {
        LOFI__UNROLL
        for (int k = 0; k < count; k++)
            sum[k] /= mean->divisor;
    }
}

LOFI__INLINE double lofi__f32_bits_to_f64(uint32_t bits)
{
    return (double)lofi__f32_of(bits);
}

LOFI__INLINE uint32_t lofi__f64_to_f32_bits(double value)
{
    return lofi__f32_bits((float)value);
}

/* The formats: name, dtype, an unsigned integer of the size, from its bits to double, and back. */
#define LOFI__MEAN_MAP(X)                                                                          \
    X(f64, LOFI_F64, uint64_t, lofi__f64_of, lofi__f64_bits)                                       \
    X(f32, LOFI_F32, uint32_t, lofi__f32_bits_to_f64, lofi__f64_to_f32_bits)                       \
    X(f16, LOFI_F16, uint16_t, lofi__f16_to_f64, lofi__f64_to_f16)                                 \
    X(bf16, LOFI_BF16, uint16_t, lofi__bf16_to_f64, lofi__f64_to_bf16)                             \
    X(e4m3, LOFI_F8_E4M3, uint8_t, lofi__e4m3_to_f64, lofi__f64_to_e4m3)                           \
    X(e5m2, LOFI_F8_E5M2, uint8_t, lofi__e5m2_to_f64, lofi__f64_to_e5m2)

/*
 * For each format: one element; one pack, of which all inputs are read before the output is
 * written, since it may be one of them; and the part of thread `first` of `step` threads.
 */
#define LOFI__MEAN_THREAD(name, dtype, bits, widen, narrow)                                        \
    LOFI__INLINE void lofi__mean_one_##name(const struct lofi__cuda_mean *mean, uint64_t index)    \
    {                                                                                              \
        const char *in = mean->in + index * sizeof(bits);                                          \
        bits x;                                                                                    \
        memcpy(&x, __builtin_assume_aligned(in, sizeof x), sizeof x);                              \
        double sum = mean->weights[0] * widen(x);                                                  \
        for (int32_t i = 1; i < mean->inputs; i++) {                                               \
            in += mean->stride_bytes;                                                              \
            memcpy(&x, __builtin_assume_aligned(in, sizeof x), sizeof x);                          \
            sum += mean->weights[i] * widen(x);                                                    \
        }                                                                                          \
        lofi__mean_divide(mean, &sum, 1);                                                          \
        x = narrow(sum);                                                                           \
        memcpy(__builtin_assume_aligned(mean->out + index * sizeof x, sizeof x), &x, sizeof x);    \
    }                                                                                              \
                                                                                                   \
    LOFI__INLINE void lofi__mean_pack_##name(const struct lofi__cuda_mean *mean, uint64_t index)   \
    {                                                                                              \
        enum { EACH = 8 / sizeof(bits), SHIFT = 8 * sizeof(bits) }; /* of one half of a pack */    \
        const char *in = mean->in + index * LOFI__MEAN_PACK_BYTES;                                 \
        char *out = mean->out + index * LOFI__MEAN_PACK_BYTES;                                     \
        uint64_t half[2];                                                                          \
        double sum[2 * EACH];                                                                      \
                                                                                                   \
        memcpy(half, __builtin_assume_aligned(in, sizeof half), sizeof half);                      \
        LOFI__UNROLL                                                                               \
        for (int k = 0; k < 2 * EACH; k++)                                                         \
            sum[k] = mean->weights[0] * widen((bits)(half[k / EACH] >> k % EACH * SHIFT));         \
        for (int32_t i = 1; i < mean->inputs; i++) {                                               \
            in += mean->stride_bytes;                                                              \
            memcpy(half, __builtin_assume_aligned(in, sizeof half), sizeof half);                  \
            LOFI__UNROLL                                                                           \
            for (int k = 0; k < 2 * EACH; k++)                                                     \
                sum[k] += mean->weights[i] * widen((bits)(half[k / EACH] >> k % EACH * SHIFT));    \
        }                                                                                          \
        lofi__mean_divide(mean, sum, 2 * EACH);                                                    \
        half[0] = half[1] = 0;                                                                     \
        LOFI__UNROLL                                                                               \
        for (int k = 0; k < 2 * EACH; k++)                                                         \
            half[k / EACH] |= (uint64_t)narrow(sum[k]) << k % EACH * SHIFT;                        \
        memcpy(__builtin_assume_aligned(out, sizeof half), half, sizeof half);                     \
    }                                                                                              \
                                                                                                   \
    LOFI__INLINE void lofi__mean_thread_##name(const struct lofi__cuda_mean *mean, uint64_t first, \
                                               uint64_t step)                                      \
    {                                                                                              \
        const uint64_t packed = mean->packs * (LOFI__MEAN_PACK_BYTES / sizeof(bits));              \
        for (uint64_t index = first; index < mean->packs; index += step)                           \
            lofi__mean_pack_##name(mean, index);                                                   \
        for (uint64_t index = packed + first; index < mean->count; index += step)                  \
            lofi__mean_one_##name(mean, index);                                                    \
    }
LOFI__MEAN_MAP(LOFI__MEAN_THREAD)
#undef LOFI__MEAN_THREAD

#endif /* LOFI_CUDA_MEAN_H */
