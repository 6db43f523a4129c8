/* SPDX-License-Identifier: MIT */
/*
 * Prints how fast, in processor time, mean and digest are on buffers that no cache holds, and the
 * folds of an all-reduce, by each set of instructions of this CPU, on buffers that the second
 * cache holds.
 */
#define _POSIX_C_SOURCE 200809L
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUFFER_BYTES ((size_t)64 << 20)
#define INPUTS 4
#define ROUNDS 5
#define FOLD_BYTES ((size_t)128 << 10)
#define FOLD_ROUNDS 100
#define FOLD_REPEATS 100

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void measure_mean(lofi_dtype dtype, const char *name, void *out, const void *const *in,
                         int inputs)
{
    double best = 1e9;
    for (int i = 0; i < ROUNDS; i++) {
        double begin = seconds();
        if (lofi_mean(dtype, out, in, NULL, inputs, BUFFER_BYTES / lofi_dtype_bytes(dtype)) != 0)
            printf("mean failed: %s\n", lofi_last_error());
        double taken = seconds() - begin;
        if (taken < best) best = taken;
    }
    printf("mean of %d %-5s %6.2f GB/s read and written\n", inputs, name,
           1e-9 * (double)BUFFER_BYTES * (inputs + 1) / best);
}

static void measure_scan(const void *data)
{
    double digest = 1e9, scan = 1e9;
    uint64_t sink = 0;
    for (int i = 0; i < ROUNDS; i++) {
        double begin = seconds();
        sink += lofi_digest_of(data, BUFFER_BYTES).word[0];
        double middle = seconds();
        sink += (uint64_t)lofi_find_nonfinite(LOFI_F32, data, BUFFER_BYTES / 4);
        double end = seconds();
        if (middle - begin < digest) digest = middle - begin;
        if (end - middle < scan) scan = end - middle;
    }
    printf("digest        %6.2f GB/s\nfind_nonfinite f32 %6.2f GB/s (%u)\n",
           1e-9 * (double)BUFFER_BYTES / digest, 1e-9 * (double)BUFFER_BYTES / scan,
           (unsigned)(sink & 1));
}

static void measure_fold(const struct lofi__kernels *kernels, lofi_dtype dtype, void *out,
                         const void *const *in)
{
    const size_t count = FOLD_BYTES / lofi_dtype_bytes(dtype);
    double best = 1e9;
    for (int i = 0; i < FOLD_ROUNDS; i++) {
        double begin = seconds();
        for (int j = 0; j < FOLD_REPEATS; j++)
            kernels->fold[LOFI_SUM][dtype](out, in, 2, 1.0, count);
        double taken = (seconds() - begin) / FOLD_REPEATS;
        if (taken < best) best = taken;
    }
    printf("fold SUM of 2 %-8s %-8s %6.2f G elements/s %7.2f GB/s read and written\n",
           kernels->name, lofi_dtype_name(dtype), 1e-9 * (double)count / best,
           3e-9 * (double)FOLD_BYTES / best);
}

static void measure_folds(void *out, const void *const *in)
{
    const struct lofi__kernels *kernels;
    for (int i = 0; (kernels = lofi__kernels_at(i)) != NULL; i++) {
        measure_fold(kernels, LOFI_F32, out, in);
        measure_fold(kernels, LOFI_F16, out, in);
        measure_fold(kernels, LOFI_BF16, out, in);
    }
}

int main(void)
{
    void *buffer[INPUTS + 1];
    const void *in[INPUTS];

    for (int i = 0; i <= INPUTS; i++) {
        buffer[i] = malloc(BUFFER_BYTES);
        if (buffer[i] == NULL) return 77;
        memset(buffer[i], 0x3c + i, BUFFER_BYTES);
        if (i > 0) in[i - 1] = buffer[i];
    }
    printf("%s\n", lofi_build_info());
    measure_folds(buffer[0], in);
    for (int inputs = 2; inputs <= INPUTS; inputs++) {
        measure_mean(LOFI_F64, "f64", buffer[0], in, inputs);
        measure_mean(LOFI_F32, "f32", buffer[0], in, inputs);
        measure_mean(LOFI_F16, "f16", buffer[0], in, inputs);
        measure_mean(LOFI_BF16, "bf16", buffer[0], in, inputs);
    }
    measure_scan(buffer[1]);
    for (int i = 0; i <= INPUTS; i++)
        free(buffer[i]);
    return 0;
}
