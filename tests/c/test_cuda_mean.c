/* SPDX-License-Identifier: MIT */
/*
 * What the threads of a kernel do, as C, against lofi_mean: to the bit, whatever the number of
 * threads and however many elements go in packs. That a GPU does the same takes a GPU.
 */
#define _GNU_SOURCE
#include "cuda/mean.h"
#include "kernels/divisor.h"
#include "test.h"

#include <math.h>
#include <sys/mman.h>

#define INPUTS 9
#define COUNT 1031             /* elements; a tail in packs of every format */
#define BUFFER (COUNT * 8 + 8) /* bytes, a multiple of 16 */

struct format {
    lofi_dtype dtype;
    size_t bytes;
    void (*thread)(const struct lofi__cuda_mean *mean, uint64_t first, uint64_t step);
    double (*value)(const void *data, size_t index);
};

#define FORMAT(name, dtype, bits, widen, narrow)                                                   \
    static void thread_##name(const struct lofi__cuda_mean *mean, uint64_t first, uint64_t step)   \
    {                                                                                              \
        lofi__mean_thread_##name(mean, first, step);                                               \
    }                                                                                              \
    static double value_##name(const void *data, size_t index)                                     \
    {                                                                                              \
        bits x;                                                                                    \
        memcpy(&x, (const char *)data + index * sizeof x, sizeof x);                               \
        return widen(x);                                                                           \
    }
LOFI__MEAN_MAP(FORMAT)
#undef FORMAT

static const struct format formats[] = {
#define FORMAT(name, dtype, bits, widen, narrow) {dtype, sizeof(bits), thread_##name, value_##name},
    LOFI__MEAN_MAP(FORMAT)
#undef FORMAT
};
#define FORMAT_COUNT (sizeof formats / sizeof formats[0])

static _Alignas(16) char data[INPUTS][BUFFER], saved[INPUTS][BUFFER];
static _Alignas(16) char out[BUFFER], expected[BUFFER];

/* ---- one mean, by so many threads ------------------------------------------------------------ */

static struct lofi__cuda_mean parameters(const struct format *f, const double *weights, int inputs,
                                         size_t count, int in_packs)
{
    struct lofi__cuda_mean mean = {.in = data[0], .out = out, .stride_bytes = BUFFER};

    mean.count = count;
    mean.packs = in_packs ? count * f->bytes / LOFI__MEAN_PACK_BYTES : 0;
    mean.inputs = inputs;
    for (int i = 0; i < inputs; i++) {
        mean.weights[i] = weights != NULL ? weights[i] : 1.0;
        mean.divisor += mean.weights[i];
    }
    mean.reciprocal = lofi__is_exact_divisor(mean.divisor) ? 1 / mean.divisor : 0;
    return mean;
}

static int is_same(const struct format *f, const char *a, const char *b, size_t count)
{
    if (memcmp(a, b, count * f->bytes) == 0) return 1;
    for (size_t i = 0; i < count; i++)
        if (memcmp(a + i * f->bytes, b + i * f->bytes, f->bytes) != 0 &&
            !(isnan(f->value(a, i)) && isnan(f->value(b, i))))
            return 0;
    return 1;
}

static void run(const struct format *f, const struct lofi__cuda_mean *mean, uint64_t threads)
{
    for (uint64_t thread = 0; thread < threads; thread++)
        f->thread(mean, thread, threads);
}

static void check(const struct format *f, const double *weights, int inputs, size_t count)
{
    static const uint64_t threads[] = {1, 7, 256, 2 * COUNT};
    const void *in[INPUTS];

    for (int i = 0; i < inputs; i++)
        in[i] = data[i];
    ASSERT(lofi_mean(f->dtype, expected, in, weights, inputs, count) == LOFI_OK);
    for (int k = 0; k < 4; k++) {
        struct lofi__cuda_mean mean = parameters(f, weights, inputs, count, k % 2);
        memset(out, 0x5a, sizeof out);
        run(f, &mean, threads[k]);
        EXPECT(is_same(f, out, expected, count));
        for (size_t i = count * f->bytes; i < sizeof out; i++)
            ASSERT(out[i] == 0x5a); /* nothing past the end */
    }
    /* the output is an input: the first, or the last */
    for (int k = 0; k < 2; k++) {
        struct lofi__cuda_mean mean = parameters(f, weights, inputs, count, 1);
        mean.out = data[k == 0 ? 0 : inputs - 1];
        memcpy(saved, data, sizeof data);
        run(f, &mean, 3);
        EXPECT(is_same(f, mean.out, expected, count));
        memcpy(data, saved, sizeof data);
    }
}

/* ---- inputs ---------------------------------------------------------------------------------- */

enum { TAME, WILD, SUBNORMAL, CLOSE, KINDS };

/* Elements of all sizes at once: bits are bits. */
static void fill(const struct format *f, uint64_t *seed, int kind)
{
    static const uint64_t sign_and_mantissa[] = {
        UINT64_C(0x800fffffffffffff), 0x807fffff, 0x83ff, 0x807f, 0x87, 0x83};
    const uint64_t mask = sign_and_mantissa[f - formats];
    const uint64_t one = (uint64_t)1 << (f->bytes * 8 - 3); /* about 1, a bit of the exponent */

    for (size_t e = 0; e < COUNT; e++) {
        const uint64_t common = test_random(seed);
        for (int i = 0; i < INPUTS; i++) {
            uint64_t bits = test_random(seed);
            if (kind == TAME) bits = (bits & mask) + one;
            if (kind == SUBNORMAL) bits &= mask;
            if (kind == CLOSE) bits = common + bits % 3; /* neighbours: their means are ties */
            memcpy(data[i] + e * f->bytes, &bits, f->bytes);
        }
    }
}

static const double weights[][INPUTS] = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1},
    {0.5, 0.5, 1, 2, 4, 8, 16, 32, 64}, /* sums are powers of two */
    {0.1, 0.2, 0.3, 0.25, 0.15, 7, 1.0 / 3, 11, 0.7},
    {1000, 1, 0, 3, 0.5, 0, 0, 1e9, 1e-9},
    {0x1p-1074, 0, 0x1p-1074, 0, 0x1p-1073, 0, 0, 0, 0x1p-1072}, /* reciprocals overflow */
    {1e300, 1e307, 1e300, 1e299, 1e300, 1e307, 1, 1, 1e306},
    {0x1p1023, 0, 0, 0, 0, 0, 0, 0, 0}, /* a power of two whose reciprocal is subnormal */
};

static void test_formats(void)
{
    static const size_t counts[] = {0, 1, 3, 15, 16, 17, 31, 64, COUNT};
    uint64_t seed = 5;

    for (size_t k = 0; k < FORMAT_COUNT; k++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int inputs = 1; inputs <= INPUTS; inputs++) {
                fill(&formats[k], &seed, kind);
                check(&formats[k], NULL, inputs, COUNT);
                check(&formats[k], NULL, inputs, counts[(size_t)inputs - 1]);
                for (size_t w = 0; w < sizeof weights / sizeof weights[0]; w++)
                    check(&formats[k], weights[w], inputs, counts[test_below(&seed, 9)]);
            }
}

/* Each pattern of 16 bits with the next one and with one far away; each two of 8 bits. */
static void test_all_patterns(void)
{
    static _Alignas(16) uint16_t a[65536], b[65536], narrow[65536], means[65536];
    const double two[][2] = {{1, 1}, {1, 2}};

    for (size_t k = 0; k < FORMAT_COUNT; k++)
        for (int round = 0; round < 4; round++) {
            const struct format *f = &formats[k];
            const size_t count = sizeof a / f->bytes;
            const void *in[2] = {a, b};
            if (f->bytes > 2) continue;
            for (unsigned i = 0; i < 65536; i++) {
                a[i] = (uint16_t)i;
                b[i] = (uint16_t)(round < 2 ? i + 1 : i * 40503u + 7);
                if (f->bytes == 1) b[i] = (uint16_t)((i >> 8) | (i << 8));
            }
            struct lofi__cuda_mean mean = parameters(f, two[round % 2], 2, count, 1);
            mean.in = (const char *)a;
            mean.stride_bytes = (uint64_t)((uintptr_t)b - (uintptr_t)a);
            mean.out = (char *)narrow;
            run(f, &mean, 100);
            ASSERT(lofi_mean(f->dtype, means, in, two[round % 2], 2, count) == LOFI_OK);
            EXPECT(is_same(f, (const char *)narrow, (const char *)means, count));
        }
}

/* Product and sum are rounded apart: see test_kernels.c. */
static void test_not_fused(void)
{
    const double in[2] = {-(1.0 + 0x1p-26), 1.0 + 0x1p-27}, odd[2] = {1.0, 1.0 + 0x1p-27};
    double result[2] = {1, 1}; /* room for a pack, which gcc can't rule out */
    struct lofi__cuda_mean mean = parameters(&formats[0], odd, 2, 1, 0);

    mean.in = (const char *)in;
    mean.stride_bytes = sizeof in[0];
    mean.out = (char *)result;
    run(&formats[0], &mean, 1);
    EXPECT(result[0] == 0.0 && result[1] == 1.0);
}

/* Elements beyond 2^32. The memory is not there until it is touched. */
static void test_large(void)
{
    const size_t count = ((size_t)1 << 32) + 9, bytes = 2 * count + 4096 - count % 2048 * 2;
    const struct format *bf16 = &formats[3];
    char *memory = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return;
    struct lofi__cuda_mean mean = parameters(bf16, NULL, 2, count, 1);
    uint16_t *first = (uint16_t *)(void *)memory, *second = (uint16_t *)(void *)(memory + bytes);

    ASSERT(bf16->dtype == LOFI_BF16);
    mean.in = memory;
    mean.out = memory;
    mean.stride_bytes = bytes;
    first[count - 1] = 0x3f80;  /* 1 */
    second[count - 1] = 0x40a0; /* 5 */
    first[count - 2] = 0x4100;  /* 8, in the last pack */
    bf16->thread(&mean, mean.packs - 1, count);
    EXPECT(first[count - 2] == 0x4080 && first[count - 1] == 0x3f80);
    bf16->thread(&mean, 0, mean.packs + 1); /* the first pack, and the element after the last */
    EXPECT(first[count - 2] == 0x4080 && first[count - 1] == 0x4040);
    EXPECT(munmap(memory, 2 * bytes) == 0);
}

int main(void)
{
    test_formats();
    test_all_patterns();
    test_not_fused();
    test_large();
    return test_end();
}
