/* SPDX-License-Identifier: MIT */
/*
 * The table of kernels: what a set of instructions may do differently.
 *
 * A mean is taken block by block: begin or add for each input into doubles, divide, narrow. The
 * steps are the units of the table because each of them has one exact result per element, which
 * every entry must give to the bit; scalar.c is the reference. A fold is one step: its sums need no
 * memory.
 *
 * To add a set of instructions: one file, one line here, in dispatch.c and in CMakeLists.txt.
 */
#ifndef LOFI_KERNELS_KERNELS_H
#define LOFI_KERNELS_KERNELS_H

#include "lofi.h"

/* Floats that are also reduced: LOFI_F64 to LOFI_BF16. Those of 8 bits only have means. */
#define LOFI__FLOAT_COUNT 4

/* sum[i] = weight * in[i], or sum[i] += weight * in[i]: product and sum each rounded to double.
 * `in` is aligned to its element only. */
typedef void (*lofi__add_fn)(double *restrict sum, const void *restrict in, double weight,
                             size_t count);
/* sum[i] /= divisor */
typedef void (*lofi__divide_fn)(double *sum, double divisor, size_t count);
/* out[i] = sum[i], rounded once to nearest even */
typedef void (*lofi__narrow_fn)(void *restrict out, const double *restrict sum, size_t count);
/* 1 if any element is NaN or infinite */
typedef int (*lofi__nonfinite_fn)(const void *data, size_t count);

/* out[i] = in[0][i] op in[1][i] op ..., the reductions of lofi_task with their rounding; `inputs`
 * is the n of AVG. All pointers are aligned to their element only; `out` may be one of the inputs,
 * not overlap them otherwise. `inputs` >= 1: one input goes through product and rounding too.
 * The factor is read for PREMUL_SUM only; for integers it is whole and an int64. */
typedef void (*lofi__fold_fn)(void *out, const void *const *in, int inputs, double factor,
                              size_t count);

/* Copies past the caches where the CPU can, so that what another core reads afterwards comes from
 * memory. Complete, for any core, when it returns. `out` is aligned to 64 bytes. */
typedef void (*lofi__stream_fn)(void *restrict out, const void *restrict in, size_t bytes);

struct lofi__kernels {
    const char *name;
    lofi__stream_fn stream;
    lofi__add_fn begin[LOFI_DTYPE_COUNT]; /* NULL here, and in the three below: no float */
    lofi__add_fn add[LOFI_DTYPE_COUNT];
    lofi__divide_fn divide;
    lofi__narrow_fn narrow[LOFI_DTYPE_COUNT];
    lofi__nonfinite_fn any_nonfinite[LOFI_DTYPE_COUNT];
    lofi__fold_fn fold[LOFI_OP_COUNT][LOFI_DTYPE_COUNT]; /* NULL: not defined */
};

/* The kernels of other CPUs are declared and not built. */
extern const struct lofi__kernels lofi__kernels_scalar;
extern const struct lofi__kernels lofi__kernels_avx2;
extern const struct lofi__kernels lofi__kernels_avx512;
extern const struct lofi__kernels lofi__kernels_neon;

/* The table for this CPU. */
const struct lofi__kernels *lofi__kernels_get(void);
/* Entry `index` of all that this CPU supports, the best first; NULL past the last one, which is
 * the scalar one. */
const struct lofi__kernels *lofi__kernels_at(int index);

/* lofi_mean_mixed of a mix that is checked, with these kernels; `weight_sum` as lofi__mean_weights
 * gives it. */
void lofi__mean_run(const struct lofi__kernels *kernels, const lofi_mix *mix, double weight_sum,
                    void *out, const void *const *in, size_t count);

/* Checks the weights and adds them up, in order; raw ones may be negative, and have any sum.
 * LOFI_INVALID names the one that is wrong. */
lofi_status lofi__mean_weights(const double *weights, int inputs, int are_raw, double *sum);

#endif /* LOFI_KERNELS_KERNELS_H */
