/* SPDX-License-Identifier: MIT */
/*
 * Rounding to the 16-bit formats by search: all finite numbers of a format in order, and the exact
 * middle of two neighbours, which a double holds. It shares nothing with the bit arithmetic of the
 * kernels.
 */
#ifndef LOFI_TESTS_NEAREST_H
#define LOFI_TESTS_NEAREST_H

#include "kernels/halffloat.h"

#include <math.h>

struct format {
    const char *name;
    int mantissa_bits, bias;
    uint16_t infinity;
    uint16_t (*narrow)(double);
    double (*widen)(uint16_t);
};

static const struct format formats[] = {
    {"float16", 10, 15, 0x7c00, lofi__f64_to_f16, lofi__f16_to_f64},
    {"bfloat16", 7, 127, 0x7f80, lofi__f64_to_bf16, lofi__bf16_to_f64},
};

/* The value of a pattern without its sign; infinity as the number that would come next. */
static inline double value_of(const struct format *f, unsigned pattern)
{
    int exponent = (int)(pattern >> f->mantissa_bits);
    double mantissa = (double)(pattern & ((1u << f->mantissa_bits) - 1));
    if (exponent == 0) return ldexp(mantissa, 1 - f->bias - f->mantissa_bits);
    return ldexp(mantissa + (double)(1 << f->mantissa_bits), exponent - f->bias - f->mantissa_bits);
}

/* Nearest by search, ties to the even pattern. */
static inline uint16_t search(const struct format *f, double value)
{
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    double absolute = fabs(value);
    unsigned low = 0, high = f->infinity;

    if (absolute >= value_of(f, high)) return (uint16_t)(sign | f->infinity);
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (value_of(f, middle) <= absolute)
            low = middle;
        else
            high = middle;
    }
    double tie = (value_of(f, low) + value_of(f, high)) / 2;
    unsigned nearest = absolute < tie ? low : absolute > tie ? high : low % 2 == 0 ? low : high;
    return (uint16_t)(sign | nearest);
}

#endif /* LOFI_TESTS_NEAREST_H */
