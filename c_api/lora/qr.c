/* SPDX-License-Identifier: MIT */
/*
 * Householder QR: Golub and Van Loan, Matrix Computations, 4th edition, algorithms 5.1.1 and 5.2.1.
 *
 * Without pivots and blocks: the matrices have few columns, which stay in a cache, and what is
 * small in them is found by the singular values afterwards. Gram-Schmidt would be as short, but
 * loses orthogonality where columns are nearly dependent, as those of adapters of one start are.
 */
#include "lora/factors.h"

#include <math.h>

#define LANES 8

/* Sums in eight lanes, so that the compiler may keep them in vectors; the order is fixed. */
double lofi__dot(const double *x, const double *y, size_t count)
{
    double sum[LANES] = {0};
    size_t i = 0;

    for (; i + LANES <= count; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            sum[lane] += x[i + lane] * y[i + lane];
    for (; i < count; i++)
        sum[i % LANES] += x[i] * y[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* Makes the reflector I - scale v v' that takes x to a multiple of the first unit vector; v, whose
 * first number is 1 and not kept, takes the place of the rest of x. */
static double reflector(double *x, size_t count)
{
    const double rest = lofi__dot(x + 1, x + 1, count - 1);
    if (rest == 0) return 0;
    const double norm = sqrt(x[0] * x[0] + rest);
    const double end = x[0] <= 0 ? norm : -norm; /* of the other sign: nothing cancels */
    const double head = x[0] - end;
    for (size_t i = 1; i < count; i++)
        x[i] /= head;
    x[0] = end;
    return -head / end;
}

/* x - scale v (v' x) */
static void reflect(const double *v, double scale, double *x, size_t count)
{
    const double along = scale * (x[0] + lofi__dot(v + 1, x + 1, count - 1));
    x[0] -= along;
    for (size_t i = 1; i < count; i++)
        x[i] -= along * v[i];
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

void lofi__qr(double *a, size_t rows, size_t columns, double *scales)
{
    for (size_t j = 0; j < least(rows, columns); j++) {
        double *v = a + j * rows + j;
        scales[j] = reflector(v, rows - j);
        for (size_t k = j + 1; k < columns; k++)
            reflect(v, scales[j], a + k * rows + j, rows - j);
    }
}

void lofi__qr_apply(const double *a, size_t rows, size_t columns, const double *scales, double *x,
                    size_t count)
{
    for (size_t k = 0; k < count; k++)
        for (size_t j = least(rows, columns); j-- > 0;)
            reflect(a + j * rows + j, scales[j], x + k * rows + j, rows - j);
}
