/* SPDX-License-Identifier: MIT */
/*
 * lofi_cuda_mean against lofi_mean, to the bit, on the driver that is there: a GPU, or the fake one
 * (LD_LIBRARY_PATH). Skipped where there is none. Every pattern of the small formats, random bits of
 * all, tails, buffers that are not aligned, an output that is an input.
 */
#include "cuda/driver.h"
#include "kernels/float8.h"
#include "test.h"

#include <math.h>
#include <sched.h>

#define INPUTS 4
#define BYTES ((size_t)1 << 18) /* of one input: every pattern of 16 bits, twice */
#define SPACE ((INPUTS + 1) * (BYTES + 16))

static const struct lofi__driver *cu;
static lofi__cu_stream stream;
static lofi__cu_address device; /* SPACE bytes, as `host` and `result` */
static char *host, *result, *expected;

#define DO(call) ASSERT(lofi__driver_check(cu, (call), #call) == LOFI_OK)

static void finish(void)
{
    lofi__cu_result state = cu->StreamQuery(stream);
    for (; state == LOFI__CU_NOT_READY; state = cu->StreamQuery(stream))
        sched_yield();
    DO(state);
}

static void transfer(lofi__cu_address to, lofi__cu_address from)
{
    DO(cu->MemcpyAsync(to, from, SPACE, stream));
    finish();
}

static double value(lofi_dtype dtype, const char *data)
{
    double f64;
    float f32;
    uint16_t half;

    memcpy(&half, data, 1);
    switch (dtype) {
    case LOFI_F64:
        memcpy(&f64, data, sizeof f64);
        return f64;
    case LOFI_F32:
        memcpy(&f32, data, sizeof f32);
        return (double)f32;
    case LOFI_F16:
        memcpy(&half, data, sizeof half);
        return lofi__f16_to_f64(half);
    case LOFI_BF16:
        memcpy(&half, data, sizeof half);
        return lofi__bf16_to_f64(half);
    case LOFI_F8_E4M3:
        return lofi__e4m3_to_f64((uint8_t)*data);
    default:
        return lofi__e5m2_to_f64((uint8_t)*data);
    }
}

/* The same bits, or two NaNs. */
static int is_same(lofi_dtype dtype, const char *a, const char *b, size_t count)
{
    const size_t each = lofi_dtype_bytes(dtype);

    for (size_t i = 0; i < count * each; i += each)
        if (memcmp(a + i, b + i, each) != 0 &&
            !(isnan(value(dtype, a + i)) && isnan(value(dtype, b + i)))) {
            fprintf(stderr, "%s, element %zu of %zu: %.17g on the GPU, %.17g on the CPU\n",
                    lofi_dtype_name(dtype), i / each, count, value(dtype, a + i),
                    value(dtype, b + i));
            return 0;
        }
    return 1;
}

static void check(lofi_dtype dtype, const double *weights, int inputs, size_t offset,
                  size_t tail_bytes, int in_place)
{
    const size_t each = lofi_dtype_bytes(dtype), stride = BYTES + offset;
    const size_t count = (BYTES - tail_bytes) / each;
    const size_t out = in_place ? offset : offset + INPUTS * stride;
    const void *in[INPUTS];

    for (int i = 0; i < inputs; i++)
        in[i] = host + offset + (size_t)i * stride;
    ASSERT(lofi_mean(dtype, expected, in, weights, inputs, count) == LOFI_OK);
    transfer(device, (uintptr_t)host);
    ASSERT(lofi_cuda_mean(dtype, (void *)(uintptr_t)(device + out),
                          (const void *)(uintptr_t)(device + offset), stride, inputs, weights,
                          count, stream) == LOFI_OK);
    transfer((uintptr_t)result, device);
    EXPECT(is_same(dtype, result + out, expected, count));
    /* and nothing else was written */
    memcpy(result + out, host + out, count * each);
    EXPECT(memcmp(result, host, SPACE) == 0);
}

/* Random bits; in the first two inputs each pattern of 16 bits beside its successor. */
static void fill(uint64_t *seed)
{
    for (size_t i = 0; i + 8 <= SPACE; i += 8) {
        const uint64_t bits = test_random(seed);
        memcpy(host + i, &bits, 8);
    }
    for (uint32_t i = 0; i < BYTES / 2; i++) {
        const uint16_t pair[2] = {(uint16_t)i, (uint16_t)(i + 1)};
        memcpy(host + 2 * i, &pair[0], 2);
        memcpy(host + BYTES + 2 * i, &pair[1], 2);
    }
}

static void test_all(void)
{
    static const double weights[][INPUTS] = {{1, 1, 1, 1},
                                             {0.1, 0.2, 0.3, 0.25},
                                             {1, 3, 0, 4},
                                             {0x1p-1074, 0, 0x1p-1074, 0x1p-1073},
                                             {1e300, 1e307, 1e300, 1e299}};
    static const lofi_dtype dtypes[] = {LOFI_F64,  LOFI_F32,     LOFI_F16,
                                        LOFI_BF16, LOFI_F8_E4M3, LOFI_F8_E5M2};
    uint64_t seed = 21;

    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++)
        for (size_t w = 0; w < sizeof weights / sizeof weights[0]; w++)
            for (int inputs = 1; inputs <= INPUTS; inputs++) {
                fill(&seed);
                check(dtypes[d], w > 0 ? weights[w] : NULL, inputs, 0, 0, 0);
                check(dtypes[d], weights[w], inputs, 8, 0, w % 2 == 0);
                check(dtypes[d], weights[w], inputs, 16, 8 + (size_t)inputs * 8, w % 2 == 1);
            }
}

static void test_integers(void)
{
    const size_t out = BYTES + 16;

    transfer(device, (uintptr_t)host);
    ASSERT(lofi_cuda_mean(LOFI_I32, (void *)(uintptr_t)(device + out),
                          (const void *)(uintptr_t)device, BYTES, 1, NULL, BYTES / 4,
                          stream) == LOFI_OK);
    transfer((uintptr_t)result, device);
    EXPECT(memcmp(result + out, host, BYTES) == 0);
}

int main(void)
{
    lofi__cu_context context = NULL;

    if (!lofi_cuda_is_built() || lofi__driver_get(&cu) != LOFI_OK) {
        printf("skipped: %s\n", lofi_cuda_is_built() ? lofi_last_error() : "no kernels were built");
        return 77;
    }
    host = malloc(SPACE);
    result = malloc(SPACE);
    expected = malloc(SPACE);
    ASSERT(host != NULL && result != NULL && expected != NULL);
    DO(cu->DevicePrimaryCtxRetain(&context, 0));
    DO(cu->CtxPushCurrent(context));
    DO(cu->StreamCreate(&stream, LOFI__CU_STREAM_NON_BLOCKING));
    DO(cu->MemAlloc(&device, SPACE));
    test_all();
    test_integers();
    DO(cu->MemFree(device));
    DO(cu->StreamDestroy(stream));
    DO(cu->CtxPopCurrent(&context));
    DO(cu->DevicePrimaryCtxRelease(0));
    free(host);
    free(result);
    free(expected);
    return test_end();
}
