/* SPDX-License-Identifier: MIT */
/*
 * The 8-bit floats: every pattern, and rounding compared with a search among all numbers of the
 * format and the exact middles between them.
 */
#include "kernels/float8.h"
#include "test.h"

#include <math.h>

struct format8 {
    lofi_dtype dtype;
    int mantissa_bits, bias;
    unsigned largest;  /* finite pattern */
    unsigned overflow; /* what a number beyond the largest becomes */
    uint8_t (*narrow)(double);
    double (*widen)(uint8_t);
};

static const struct format8 formats[] = {
    {LOFI_F8_E4M3, 3, 7, 0x7e, 0x7e, lofi__f64_to_e4m3, lofi__e4m3_to_f64},
    {LOFI_F8_E5M2, 2, 15, 0x7b, 0x7c, lofi__f64_to_e5m2, lofi__e5m2_to_f64},
};

/* Of a pattern without its sign; past the largest, the number that would come next. */
static double value_of(const struct format8 *f, unsigned pattern)
{
    const int exponent = (int)(pattern >> f->mantissa_bits);
    const unsigned one = 1u << f->mantissa_bits;
    const double mantissa = (double)(pattern & (one - 1));
    if (exponent == 0) return ldexp(mantissa, 1 - f->bias - f->mantissa_bits);
    return ldexp(mantissa + (double)one, exponent - f->bias - f->mantissa_bits);
}

static unsigned search(const struct format8 *f, double value)
{
    const unsigned sign = signbit(value) ? 0x80 : 0;
    const double absolute = fabs(value);
    unsigned nearest = f->overflow;

    for (unsigned low = 0; low <= f->largest; low++) {
        const double tie = (value_of(f, low) + value_of(f, low + 1)) / 2;
        if (absolute < tie || (absolute == tie && low % 2 == 0)) {
            nearest = low;
            break;
        }
    }
    return sign | nearest;
}

static void check(const struct format8 *f, double value)
{
    EXPECT(f->narrow(value) == search(f, value));
    EXPECT(f->narrow(-value) == search(f, -value));
}

static int is_nan(const struct format8 *f, unsigned pattern)
{
    return f->dtype == LOFI_F8_E4M3 ? (pattern & 0x7f) == 0x7f : (pattern & 0x7f) > 0x7c;
}

static void test_patterns(const struct format8 *f)
{
    for (unsigned pattern = 0; pattern < 256; pattern++) {
        const double value = f->widen((uint8_t)pattern);
        const unsigned absolute = pattern & 0x7f;
        if (is_nan(f, pattern)) {
            EXPECT(isnan(value) && is_nan(f, f->narrow(value)));
            continue;
        }
        EXPECT((signbit(value) != 0) == (pattern >> 7 != 0));
        EXPECT(fabs(value) == (absolute > f->largest ? INFINITY : value_of(f, absolute)));
        EXPECT(f->narrow(value) == pattern);
    }
}

static void test_rounding(const struct format8 *f)
{
    uint64_t seed = 3;
    for (unsigned pattern = 0; pattern <= f->largest; pattern++) {
        const double value = value_of(f, pattern);
        const double tie = (value + value_of(f, pattern + 1)) / 2;
        check(f, nextafter(value, INFINITY));
        check(f, nextafter(value, 0));
        check(f, tie);
        check(f, nextafter(tie, INFINITY));
        check(f, nextafter(tie, 0));
    }
    for (int i = 0; i < 100000; i++) {
        const double wild = lofi__f64_of(test_random(&seed));
        const double fraction = (double)(test_random(&seed) >> 12) * 0x1p-52;
        if (!isnan(wild)) check(f, wild);
        check(f, ldexp(1.0 + fraction, test_below(&seed, 40) - 20));
    }
    EXPECT(f->narrow(INFINITY) == f->overflow && f->narrow(-INFINITY) == (f->overflow | 0x80));
    EXPECT(is_nan(f, f->narrow(NAN)) && is_nan(f, f->narrow(-NAN)));
    EXPECT(f->narrow(0.0) == 0 && f->narrow(-0.0) == 0x80);
}

static void test_mean(const struct format8 *f)
{
    uint8_t first[256], second[256], out[256];
    const void *in[2] = {first, second};

    for (unsigned shift = 1; shift < 256; shift += 7) {
        for (unsigned i = 0; i < 256; i++) {
            first[i] = (uint8_t)i;
            second[i] = (uint8_t)(i + shift);
        }
        ASSERT(lofi_mean(f->dtype, out, in, NULL, 2, 256) == LOFI_OK);
        for (unsigned i = 0; i < 256; i++) {
            const double mean = (f->widen(first[i]) + f->widen(second[i])) / 2;
            EXPECT(isnan(mean) ? is_nan(f, out[i]) : out[i] == search(f, mean));
        }
    }
    memset(first, 0, sizeof first);
    EXPECT(lofi_find_nonfinite(f->dtype, first, 256) == -1);
    first[200] = (uint8_t)(f->largest + 1);
    EXPECT(lofi_find_nonfinite(f->dtype, first, 256) == 200);
}

int main(void)
{
    for (int i = 0; i < 2; i++) {
        test_patterns(&formats[i]);
        test_rounding(&formats[i]);
        test_mean(&formats[i]);
    }
    return test_end();
}
