/* SPDX-License-Identifier: MIT */
/* Values: types of elements, means on the CPU and on GPUs, fingerprints. */
#ifndef LOFI_VALUES_H
#define LOFI_VALUES_H

#include "lofi/base.h"

LOFI__DECLARATIONS_BEGIN

typedef enum lofi_dtype {
    LOFI_F64 = 0,
    LOFI_F32 = 1,
    LOFI_F16 = 2,
    LOFI_BF16 = 3,
    LOFI_BYTES = 4, /* no arithmetic: one element is one byte */
    LOFI_I8 = 5,
    LOFI_U8 = 6,
    LOFI_I32 = 7,
    LOFI_I64 = 8,
    /* Floats of 8 bits, as torch has them: float8_e4m3fn has no infinities, and all beyond 448
     * becomes 448; float8_e5m2 is a shorter float16. For means, not for reductions. */
    LOFI_F8_E4M3 = 9,
    LOFI_F8_E5M2 = 10,
    LOFI_DTYPE_COUNT = 11
} lofi_dtype;

size_t lofi_dtype_bytes(lofi_dtype dtype); /* of one element; 0 for a value not listed */
/* "float32", "bytes" and so on; "unknown" for a value not listed. Static storage. */
const char *lofi_dtype_name(lofi_dtype dtype);

/*
 * out[i] = ((w0*in0[i] + w1*in1[i]) + w2*in2[i] ...) / (w0 + w1 + ...), for `count` elements of
 * `inputs` buffers: products, sums and the quotient in IEEE double, in the order given, without
 * fused multiply-add, rounded once to the dtype, to nearest even. The bits do not depend on
 * threads, chunks or the CPU, given the default floating-point environment: rounding to nearest,
 * subnormals not flushed. LOFI_BYTES and the integers copy the first input.
 *
 * `weights` may be NULL for equal weights (all 1), else finite, >= 0, with a sum > 0. `out` may be
 * one of the inputs, not overlap them otherwise. Buffers are aligned to the element.
 * LOFI_INVALID names what is wrong; nothing is written then.
 */
lofi_status lofi_mean(lofi_dtype dtype, void *out, const void *const *in, const double *weights,
                      int inputs, size_t count);

/* A mean whose inputs and output have dtypes of their own, mixed with a base if there is one: as
 * lofi_average_files says, with the same bits. All dtypes are floats. */
typedef struct lofi_mix {
    size_t size;
    lofi_dtype out_dtype;
    const lofi_dtype *in_dtypes; /* one for each input; NULL: all as the output's */
    const double *weights;       /* as in lofi_mean */
    int inputs;
    const void *base; /* NULL: none */
    lofi_dtype base_dtype;
    double alpha;    /* read with a base: out = (1 - alpha)*base + alpha*mean */
    int raw_weights; /* 1: any finite weights, of whatever sum W, and no division by it: the mean is
                        w0*in0[i] + w1*in1[i] ..., and with a base
                        out = (1 - alpha*W)*base + alpha*mean */
} lofi_mix;
#define LOFI_MIX_INIT                                                                              \
    {                                                                                              \
        sizeof(lofi_mix), LOFI_F32, NULL, NULL, 1, NULL, LOFI_F32, 1.0, 0                          \
    }

/* Errors and buffers as in lofi_mean; `out` may be an input or the base if their elements are of
 * one size. */
lofi_status lofi_mean_mixed(const lofi_mix *mix, void *out, const void *const *in, size_t count);

/* Index of the first element that is NaN or infinite, or -1. Always -1 for what is no float. */
int64_t lofi_find_nonfinite(lofi_dtype dtype, const void *data, size_t count);

/*
 * lofi_mean on a GPU: the same formula and the same bits (which NaN a NaN is, is not defined), for
 * `inputs` buffers of which the one with index i begins at `in` + i * `stride_bytes`. Puts the work
 * on `stream` and returns; it waits for nothing. Any thread, whether it has used CUDA or not, also
 * while the stream is captured into a graph.
 *
 *   out, in    Memory of one GPU, aligned to the element; `out` may be one of the inputs, not
 *              overlap them otherwise. 16 bytes at a time are read where `in`, `out` and
 *              `stride_bytes` are multiples of 16. Borrowed until the work on the stream is done.
 *   weights    Memory of the host, or NULL, as in lofi_mean; read before the call returns.
 *   inputs     1 ... LOFI_CUDA_MEAN_INPUTS: the weights travel with the launch.
 *   stream     A cudaStream_t or CUstream of that GPU; NULL is its default stream.
 *
 * LOFI_INVALID names the argument that is wrong; LOFI_UNSUPPORTED says why there can be no kernel:
 * the library was built without them, no driver, a GPU that they were not built for; LOFI_SYSTEM
 * has the driver's words; LOFI_NO_MEMORY. What fails later fails on the stream, as all of CUDA. The
 * kernels stay loaded in a CUDA context once used there: it must not be destroyed or reset and then
 * be used with lofi again.
 */
#define LOFI_CUDA_MEAN_INPUTS 500
lofi_status lofi_cuda_mean(lofi_dtype dtype, void *out, const void *in, size_t stride_bytes,
                           int inputs, const double *weights, size_t count, void *stream);

/* 1 if this library has its kernels for GPUs (it was built with nvcc), else 0. Asks no driver. */
int lofi_cuda_is_built(void);

typedef struct lofi_digest {
    uint64_t word[2];
} lofi_digest;

/* A 128-bit fingerprint of `bytes` bytes, for telling equal tensors from different ones; not
 * cryptographic. The same on every machine and in every release with the same major version. */
lofi_digest lofi_digest_of(const void *data, size_t bytes);

LOFI__DECLARATIONS_END

#endif /* LOFI_VALUES_H */
