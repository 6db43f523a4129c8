/* SPDX-License-Identifier: MIT */
/*
 * One-sided Jacobi: Golub and Van Loan, Matrix Computations, 4th edition, section 8.6.3. Pairs of
 * columns are rotated until all are orthogonal; their lengths are the singular values, the product
 * of the rotations is V.
 *
 * It is the slowest of the methods and the shortest by far, and gets small singular values as
 * exactly as large ones. The matrix here is as large as the ranks of all adapters together: some
 * dozens, rarely hundreds.
 */
#include "lora/factors.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define SWEEPS_MOST 60 /* about ten are needed; the limit is for what is not finite */

static void rotate(double *x, double *y, double c, double s, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const double left = x[i], right = y[i];
        x[i] = c * left - s * right;
        y[i] = s * left + c * right;
    }
}

/* Makes the columns p and q of `a` orthogonal. 0: they are already. */
static int rotate_pair(double *a, double *v, size_t size, size_t p, size_t q)
{
    double *x = a + p * size, *y = a + q * size;
    const double xx = lofi__dot(x, x, size), yy = lofi__dot(y, y, size);
    const double xy = lofi__dot(x, y, size);

    if (!(fabs(xy) > DBL_EPSILON * sqrt((double)size) * sqrt(xx) * sqrt(yy))) return 0;
    const double tau = (yy - xx) / (2 * xy);
    const double t = (tau >= 0 ? 1 : -1) / (fabs(tau) + sqrt(1 + tau * tau));
    const double c = 1 / sqrt(1 + t * t), s = t * c;
    rotate(x, y, c, s, size);
    rotate(v + p * size, v + q * size, c, s, size);
    return 1;
}

static void swap(double *x, double *y, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const double kept = x[i];
        x[i] = y[i];
        y[i] = kept;
    }
}

static void sort(double *a, double *v, double *values, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        size_t largest = i;
        for (size_t j = i + 1; j < size; j++)
            if (values[j] > values[largest]) largest = j;
        if (largest == i) continue;
        swap(&values[i], &values[largest], 1);
        swap(a + i * size, a + largest * size, size);
        swap(v + i * size, v + largest * size, size);
    }
}

void lofi__svd(double *a, size_t size, double *v, double *values)
{
    int are_rotated = 1;

    memset(v, 0, size * size * sizeof *v);
    for (size_t i = 0; i < size; i++)
        v[i * size + i] = 1;
    for (int sweep = 0; sweep < SWEEPS_MOST && are_rotated; sweep++) {
        are_rotated = 0;
        for (size_t p = 0; p + 1 < size; p++)
            for (size_t q = p + 1; q < size; q++)
                are_rotated |= rotate_pair(a, v, size, p, q);
    }
    for (size_t i = 0; i < size; i++)
        values[i] = sqrt(lofi__dot(a + i * size, a + i * size, size));
    sort(a, v, values, size);
}
