/* SPDX-License-Identifier: MIT */
/* When a division may be a multiplication. */
#ifndef LOFI_KERNELS_DIVISOR_H
#define LOFI_KERNELS_DIVISOR_H

#include "kernels/halffloat.h"

/* A power of two whose reciprocal is a normal number: there, to multiply by the reciprocal gives
 * the bits of the quotient, several times as fast. */
static inline int lofi__is_exact_divisor(double divisor)
{
    const uint64_t bits = lofi__f64_bits(divisor);
    const uint64_t exponent = bits >> 52;
    return (bits & ((UINT64_C(1) << 52) - 1)) == 0 && exponent >= 1 && exponent <= 2045;
}

#endif /* LOFI_KERNELS_DIVISOR_H */
