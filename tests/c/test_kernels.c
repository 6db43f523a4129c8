/* SPDX-License-Identifier: MIT */
/* The mean, to the bit, and the conversions it rounds with. */
#include "nearest.h"
#include "test.h"

static void check_narrow(const struct format *f, double value)
{
    EXPECT(f->narrow(value) == search(f, value));
    EXPECT(f->narrow(-value) == search(f, -value));
}

static void test_format(const struct format *f)
{
    for (unsigned pattern = 0; pattern <= 0xffff; pattern++) {
        double value = f->widen((uint16_t)pattern);
        unsigned absolute = pattern & 0x7fff;
        if (absolute > f->infinity) {
            EXPECT(isnan(value));
            EXPECT((f->narrow(value) & 0x7fff) > f->infinity);
            continue;
        }
        EXPECT(signbit(value) ? pattern >> 15 == 1 : pattern >> 15 == 0);
        EXPECT(fabs(value) == (absolute == f->infinity ? INFINITY : value_of(f, absolute)));
        EXPECT(f->narrow(value) == pattern); /* every pattern comes back */
    }
    for (unsigned pattern = 0; pattern < f->infinity; pattern++) {
        double value = value_of(f, pattern);
        double tie = (value + value_of(f, pattern + 1)) / 2;
        check_narrow(f, nextafter(value, INFINITY));
        if (pattern > 0) check_narrow(f, nextafter(value, 0));
        check_narrow(f, tie);
        check_narrow(f, nextafter(tie, INFINITY)); /* through float, this would be the tie */
        check_narrow(f, nextafter(tie, 0));
    }
}

static void test_narrow_far(const struct format *f)
{
    static const double far[] = {
        65519.999,  65520.0,           65536.0,  1e6,      1e300,    0x1.fep127,
        0x1.ffp127, 0x1.fefffffffp127, 0x1p128,  1e-300,   5e-324,   0x1p-24,
        0x1p-25,    0x1p-26,           0x1p-133, 0x1p-134, 0x1p-135, 1.7976931348623157e308};
    uint64_t seed = 7;

    for (size_t i = 0; i < sizeof far / sizeof far[0]; i++) {
        check_narrow(f, far[i]);
        check_narrow(f, nextafter(far[i], 0));
    }
    EXPECT(f->narrow(INFINITY) == f->infinity);
    EXPECT(f->narrow(-INFINITY) == (f->infinity | 0x8000));
    EXPECT((f->narrow(NAN) & 0x7fff) > f->infinity);
    EXPECT((f->narrow(-NAN) & 0x7fff) > f->infinity);
    EXPECT(f->narrow(0.0) == 0 && f->narrow(-0.0) == 0x8000);
    for (int i = 0; i < 300000; i++) {
        double value = lofi__f64_of(test_random(&seed));
        if (isnan(value)) {
            EXPECT((f->narrow(value) & 0x7fff) > f->infinity);
            continue;
        }
        check_narrow(f, value); /* of any size, mostly out of range */
        int exponent = test_below(&seed, 2 * f->bias + 20) - f->bias - 15;
        check_narrow(f, ldexp(1.0 + (double)(test_random(&seed) >> 12) * 0x1p-52, exponent));
    }
}

/* ---- the mean through the public function ---------------------------------------------------- */

#define COUNT 3001 /* several blocks, and a rest */
#define INPUTS 5

static double in64[INPUTS][COUNT];
static float in32[INPUTS][COUNT];
static uint16_t in16[INPUTS][COUNT];
static const void *in[INPUTS];

/* The formula of lofi.h; volatile keeps each rounding apart from the next. */
static double reference(const double *value, const double *weights, int inputs)
{
    volatile double sum = 0, weight_sum = 0, product;
    for (int i = 0; i < inputs; i++) {
        double weight = weights != NULL ? weights[i] : 1.0;
        product = weight * value[i];
        sum = i == 0 ? product : sum + product;
        weight_sum = weight_sum + weight;
    }
    sum = sum / weight_sum;
    return sum;
}

static int same_f64(double a, double b)
{
    return (isnan(a) && isnan(b)) || lofi__f64_bits(a) == lofi__f64_bits(b);
}

static void check_mean_f64(const double *weights, int inputs)
{
    static double out[COUNT];
    for (int i = 0; i < inputs; i++)
        in[i] = in64[i];
    ASSERT(lofi_mean(LOFI_F64, out, in, weights, inputs, COUNT) == LOFI_OK);
    for (int e = 0; e < COUNT; e++) {
        double value[INPUTS];
        for (int i = 0; i < inputs; i++)
            value[i] = in64[i][e];
        EXPECT(same_f64(out[e], reference(value, weights, inputs)));
    }
}

static void check_mean_f32(const double *weights, int inputs)
{
    static float out[COUNT];
    for (int i = 0; i < inputs; i++)
        in[i] = in32[i];
    ASSERT(lofi_mean(LOFI_F32, out, in, weights, inputs, COUNT) == LOFI_OK);
    for (int e = 0; e < COUNT; e++) {
        double value[INPUTS];
        for (int i = 0; i < inputs; i++)
            value[i] = (double)in32[i][e];
        float expected = (float)reference(value, weights, inputs);
        EXPECT(same_f64((double)out[e], (double)expected));
    }
}

static void check_mean_16(lofi_dtype dtype, const double *weights, int inputs)
{
    static uint16_t out[COUNT];
    const struct format *f = &formats[dtype == LOFI_BF16];
    for (int i = 0; i < inputs; i++)
        in[i] = in16[i];
    ASSERT(lofi_mean(dtype, out, in, weights, inputs, COUNT) == LOFI_OK);
    for (int e = 0; e < COUNT; e++) {
        double value[INPUTS];
        for (int i = 0; i < inputs; i++)
            value[i] = f->widen(in16[i][e]);
        double mean = reference(value, weights, inputs);
        EXPECT(isnan(mean) ? (out[e] & 0x7fff) > f->infinity : out[e] == search(f, mean));
    }
}

static void fill_inputs(uint64_t *seed, int is_wild)
{
    for (int i = 0; i < INPUTS; i++)
        for (int e = 0; e < COUNT; e++) {
            uint64_t bits = test_random(seed);
            double tame = (double)(int64_t)bits * 0x1p-62;
            in64[i][e] = is_wild ? lofi__f64_of(bits) : tame;
            in32[i][e] = is_wild ? lofi__f32_of((uint32_t)bits) : (float)tame;
            in16[i][e] = (uint16_t)(is_wild ? bits : bits & 0xbfff); /* below 2 in magnitude */
        }
}

static void test_means(void)
{
    static const double weights[][INPUTS] = {{1, 1, 1, 1, 1},
                                             {0.1, 0.2, 0.3, 0.25, 0.15},
                                             {1000, 1, 0, 3, 0.5},
                                             {1e-300, 1e-300, 3e-300, 1e-305, 1e-300},
                                             {0x1p-1074, 0, 0x1p-1074, 0, 0x1p-1073},
                                             {1e300, 1e307, 1e300, 1e299, 1e300}};
    uint64_t seed = 3;

    for (int is_wild = 0; is_wild < 2; is_wild++) {
        fill_inputs(&seed, is_wild);
        for (int inputs = 1; inputs <= INPUTS; inputs++)
            for (size_t w = 0; w <= sizeof weights / sizeof weights[0]; w++) {
                const double *chosen = w > 0 ? weights[w - 1] : NULL;
                check_mean_f64(chosen, inputs);
                check_mean_f32(chosen, inputs);
                check_mean_16(LOFI_F16, chosen, inputs);
                check_mean_16(LOFI_BF16, chosen, inputs);
            }
    }
}

/* The mean of one input is that input, for all patterns; of two neighbours, the even one. */
static void test_all_halves(void)
{
    static uint16_t all[65536], next[65536], out[65536];
    const void *pair[2] = {all, next};

    for (unsigned i = 0; i < 65536; i++) {
        all[i] = (uint16_t)i;
        next[i] = (uint16_t)(i + 1);
    }
    for (int k = 0; k < 2; k++) {
        const struct format *f = &formats[k];
        lofi_dtype dtype = k == 0 ? LOFI_F16 : LOFI_BF16;
        ASSERT(lofi_mean(dtype, out, pair, NULL, 1, 65536) == LOFI_OK);
        for (unsigned i = 0; i < 65536; i++)
            EXPECT((i & 0x7fff) > f->infinity ? (out[i] & 0x7fff) > f->infinity : out[i] == i);
        ASSERT(lofi_mean(dtype, out, pair, NULL, 2, 65536) == LOFI_OK);
        for (unsigned i = 0; i < 65536; i++)
            if ((i & 0x7fff) + 1 < f->infinity)
                EXPECT(out[i] == (uint16_t)(i % 2 == 0 ? i : i + 1));
    }
}

/* Here fma(w1, x1, w0 * x0) gives other bits than the product and the sum. */
static void test_not_fused(void)
{
    double a = -(1.0 + 0x1p-26), b = 1.0 + 0x1p-27, out = 0;
    const double weights[2] = {1.0, 1.0 + 0x1p-27};
    const void *two[2] = {&a, &b};

    ASSERT(lofi_mean(LOFI_F64, &out, two, weights, 2, 1) == LOFI_OK);
    EXPECT(out == 0.0); /* fused: 2^-54, divided */
    EXPECT(fma(weights[1], b, weights[0] * a) == 0x1p-54);
}

/* The float nearest to the mean of two doubles' exact middle: one rounding, not two. */
static void test_accuracy(void)
{
    uint64_t seed = 11;
    for (int i = 0; i < 100000; i++) {
        float x[3], out;
        const void *three[3] = {&x[0], &x[1], &x[2]};
        for (int j = 0; j < 3; j++)
            x[j] = (float)((double)(int64_t)test_random(&seed) * 0x1p-62);
        ASSERT(lofi_mean(LOFI_F32, &out, three, NULL, 3, 1) == LOFI_OK);
        long double exact = ((long double)x[0] + (long double)x[1] + (long double)x[2]) / 3;
        long double unit = (long double)(nextafterf(fabsf(out), INFINITY) - fabsf(out));
        EXPECT(fabsl((long double)out - exact) <= unit * 0.500001L);
    }
}

static void test_in_place(void)
{
    static float x[COUNT], y[COUNT], expected[COUNT];
    const void *both[2] = {x, y};
    for (int e = 0; e < COUNT; e++) {
        x[e] = (float)e;
        y[e] = (float)(3 * e);
        expected[e] = (float)(2 * e);
    }
    ASSERT(lofi_mean(LOFI_F32, y, both, NULL, 2, COUNT) == LOFI_OK);
    EXPECT(memcmp(y, expected, sizeof y) == 0);
    ASSERT(lofi_mean(LOFI_BYTES, x, both, NULL, 2, sizeof x) == LOFI_OK);
    EXPECT(x[7] == 7.0f);
    ASSERT(lofi_mean(LOFI_BYTES, y, both, NULL, 2, sizeof x - 1) == LOFI_OK);
    EXPECT(memcmp(x, y, sizeof x - 1) == 0);
}

static void test_refused(void)
{
    static const double bad[][2] = {{1, -1}, {0, 0}, {NAN, 1}, {1, INFINITY}, {1e308, 1.7e308}};
    float x[4] = {1, 2, 3, 4}, out[4] = {9, 9, 9, 9};
    const void *two[2] = {x, x}, *none[2] = {x, NULL};
    const void *odd[2] = {x, (const char *)x + 2};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        EXPECT(lofi_mean(LOFI_F32, out, two, bad[i], 2, 4) == LOFI_INVALID);
    EXPECT(lofi_mean(LOFI_BYTES, out, two, bad[0], 2, 4) == LOFI_INVALID);
    EXPECT_ERROR("weight 1 is -1");
    EXPECT(lofi_mean(LOFI_F32, out, two, NULL, 0, 4) == LOFI_INVALID);
    EXPECT(lofi_mean(LOFI_F32, out, NULL, NULL, 2, 4) == LOFI_INVALID);
    EXPECT(lofi_mean(LOFI_F32, NULL, two, NULL, 2, 4) == LOFI_INVALID);
    EXPECT(lofi_mean(LOFI_F32, out, none, NULL, 2, 4) == LOFI_INVALID);
    EXPECT_ERROR("input 1 of a mean is NULL");
    EXPECT(lofi_mean(LOFI_F32, out, odd, NULL, 2, 1) == LOFI_INVALID);
    EXPECT_ERROR("aligned to its elements of 4 bytes");
    EXPECT(lofi_mean(LOFI_F32, out, two, NULL, 2, SIZE_MAX / 2) == LOFI_INVALID);
    EXPECT(lofi_mean(LOFI_DTYPE_COUNT, out, two, NULL, 2, 4) == LOFI_INVALID);
    EXPECT(lofi_mean((lofi_dtype)-1, out, two, NULL, 2, 4) == LOFI_INVALID);
    for (int i = 0; i < 4; i++)
        EXPECT(out[i] == 9);
    EXPECT(lofi_mean(LOFI_F32, NULL, none + 1, NULL, 1, 0) == LOFI_OK);

    EXPECT(lofi_dtype_bytes(LOFI_F64) == 8 && lofi_dtype_bytes(LOFI_F32) == 4);
    EXPECT(lofi_dtype_bytes(LOFI_F16) == 2 && lofi_dtype_bytes(LOFI_BF16) == 2);
    EXPECT(lofi_dtype_bytes(LOFI_BYTES) == 1);
    EXPECT(lofi_dtype_bytes(LOFI_I8) == 1 && lofi_dtype_bytes(LOFI_U8) == 1);
    EXPECT(lofi_dtype_bytes(LOFI_I32) == 4 && lofi_dtype_bytes(LOFI_I64) == 8);
    EXPECT(lofi_dtype_bytes(LOFI_DTYPE_COUNT) == 0 && lofi_dtype_bytes((lofi_dtype)-1) == 0);
}

static void test_names(void)
{
    static const char *const names[] = {"float64", "float32",       "float16",    "bfloat16",
                                        "bytes",   "int8",          "uint8",      "int32",
                                        "int64",   "float8_e4m3fn", "float8_e5m2"};
    for (int i = 0; i < LOFI_DTYPE_COUNT; i++)
        EXPECT(strcmp(lofi_dtype_name((lofi_dtype)i), names[i]) == 0);
    EXPECT(strcmp(lofi_dtype_name(LOFI_DTYPE_COUNT), "unknown") == 0);
    EXPECT(strcmp(lofi_dtype_name((lofi_dtype)-1), "unknown") == 0);
}

/* The mean of integers is the first input, as that of bytes. */
static void test_integers(void)
{
    static const lofi_dtype integers[] = {LOFI_BYTES, LOFI_I8, LOFI_U8, LOFI_I32, LOFI_I64};
    int64_t first[3] = {-1, INT64_MIN, 5}, second[3] = {7, 7, 7}, out[3];
    const void *two[2] = {first, second};

    for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++) {
        const size_t count = sizeof first / lofi_dtype_bytes(integers[i]);
        memset(out, 0, sizeof out);
        ASSERT(lofi_mean(integers[i], out, two, NULL, 2, count - 1) == LOFI_OK);
        EXPECT(memcmp(out, first, sizeof first - lofi_dtype_bytes(integers[i])) == 0);
        EXPECT(((unsigned char *)out)[sizeof out - 1] == 0);
        ASSERT(lofi_mean(integers[i], first, two, NULL, 2, count) == LOFI_OK);
        EXPECT(first[0] == -1 && first[2] == 5);
        EXPECT(lofi_find_nonfinite(integers[i], first, count) == -1);
    }
}

static void put(lofi_dtype dtype, void *data, int i, int is_nan)
{
    double value = is_nan ? NAN : INFINITY;
    switch (dtype) {
    case LOFI_F64:
        ((double *)data)[i] = value;
        break;
    case LOFI_F32:
        ((float *)data)[i] = (float)-value;
        break;
    default:
        ((uint16_t *)data)[i] = formats[dtype == LOFI_BF16].narrow(value);
        break;
    }
}

static void test_nonfinite(void)
{
    static double data[COUNT]; /* aligned for all */

    for (int dtype = LOFI_F64; dtype <= LOFI_BF16; dtype++) {
        lofi_dtype type = (lofi_dtype)dtype;
        memset(data, 0, sizeof data);
        EXPECT(lofi_find_nonfinite(type, data, COUNT) == -1);
        EXPECT(lofi_find_nonfinite(type, NULL, 0) == -1);
        for (int i = COUNT - 1; i >= 0; i -= 1 + i % 97) {
            put(type, data, i, i & 1);
            EXPECT(lofi_find_nonfinite(type, data, COUNT) == i);
            EXPECT(lofi_find_nonfinite(type, data, (size_t)i) == -1);
        }
    }
    memset(data, 0xff, sizeof data);
    EXPECT(lofi_find_nonfinite(LOFI_BYTES, data, sizeof data) == -1);
    for (int i = 0; i < COUNT; i++)
        data[i] = i % 2 ? 1.7976931348623157e308 : -5e-324;
    EXPECT(lofi_find_nonfinite(LOFI_F64, data, COUNT) == -1);
}

int main(void)
{
    for (int i = 0; i < 2; i++) {
        test_format(&formats[i]);
        test_narrow_far(&formats[i]);
    }
    test_all_halves();
    test_means();
    test_not_fused();
    test_accuracy();
    test_in_place();
    test_refused();
    test_names();
    test_integers();
    test_nonfinite();
    return test_end();
}
