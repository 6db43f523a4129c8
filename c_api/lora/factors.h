/* SPDX-License-Identifier: MIT */
/*
 * Products of two thin matrices, as adapters hold them, in double. The product itself, which may be
 * thousands of times larger, is never formed.
 */
#ifndef LOFI_LORA_FACTORS_H
#define LOFI_LORA_FACTORS_H

#include "lofi/base.h"

#include <stddef.h>

/* The matrix B A of `rows` rows and `columns` columns, as a sum of `rank` outer products: number i
 * is of the i-th column of B, b[i * rows ...], and of the i-th row of A, a[i * columns ...]. */
struct lofi__factors {
    double *b, *a;
    size_t rows, columns, rank;
};

/* Zeros. LOFI_NO_MEMORY; clear the factors also after an error. */
lofi_status lofi__factors_create(struct lofi__factors *factors, size_t rows, size_t columns,
                                 size_t rank);
void lofi__factors_clear(struct lofi__factors *factors);

/* The square of the Frobenius norm of B A. */
double lofi__factors_square(const struct lofi__factors *factors);

/*
 * Writes the best approximation of B A with the rank of `to` (Eckart and Young), which has its rows
 * and columns: each factor gets the square root of the singular values. Beyond the rank that the
 * product has, `to` gets zeros. `square` and `lost` get the squares of the Frobenius norms of the
 * product, and of what the approximation lacks. `from` is used up. All numbers have to be finite.
 */
lofi_status lofi__factors_reduce(struct lofi__factors *from, struct lofi__factors *to,
                                 double *square, double *lost);

/* qr.c, column by column: a[j * rows ...] is column j. */

/* Householder QR in place: R above the diagonal and on it, the reflectors below, their scales in
 * `scales`, which has room for the lesser of rows and columns. */
void lofi__qr(double *a, size_t rows, size_t columns, double *scales);
/* Multiplies `count` columns of x by the Q of a factorisation, from the left. */
void lofi__qr_apply(const double *a, size_t rows, size_t columns, const double *scales, double *x,
                    size_t count);
double lofi__dot(const double *x, const double *y, size_t count);

/* svd.c: the singular values of a square matrix, descending, by one-sided Jacobi. `a` becomes U
 * with each column times its singular value, `v` gets V. */
void lofi__svd(double *a, size_t size, double *v, double *values);

#endif /* LOFI_LORA_FACTORS_H */
