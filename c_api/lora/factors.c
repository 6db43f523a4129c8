/* SPDX-License-Identifier: MIT */
/*
 * With B = Qb Rb and A' = Qa Ra the product is Qb (Rb Ra') Qa', so its singular values are those of
 * the small matrix Rb Ra'.
 */
#include "lora/factors.h"
#include "core/mem.h"

#include <math.h>
#include <string.h>

lofi_status lofi__factors_create(struct lofi__factors *factors, size_t rows, size_t columns,
                                 size_t rank)
{
    size_t b = 0, a = 0;

    *factors = (struct lofi__factors){.rows = rows, .columns = columns, .rank = rank};
    if (__builtin_mul_overflow(rows, rank, &b) || __builtin_mul_overflow(columns, rank, &a)) {
        lofi_set_error("factors of %zu and %zu numbers with rank %zu are too large", rows, columns,
                       rank);
        return LOFI_INVALID;
    }
    factors->b = lofi__mem_create(b, sizeof(double));
    factors->a = lofi__mem_create(a, sizeof(double));
    return factors->b != NULL && factors->a != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

void lofi__factors_clear(struct lofi__factors *factors)
{
    lofi__mem_destroy(factors->b);
    lofi__mem_destroy(factors->a);
    *factors = (struct lofi__factors){0};
}

/* R as a square matrix with the rest zeros: `r` has rank x rank zeros. */
static void copy_triangle(const double *a, size_t rows, size_t rank, double *r)
{
    for (size_t j = 0; j < rank; j++)
        for (size_t i = 0; i <= j && i < rows; i++)
            r[j * rank + i] = a[j * rows + i];
}

/* x y', all square */
static void multiply(const double *x, const double *y, size_t size, double *out)
{
    memset(out, 0, size * size * sizeof *out);
    for (size_t j = 0; j < size; j++)
        for (size_t k = 0; k < size; k++)
            for (size_t i = 0; i < size; i++)
                out[j * size + i] += x[k * size + i] * y[k * size + j];
}

/* What a reduction needs beside its factors: square matrices, and rows of as many numbers. */
struct room {
    double *memory;
    double *left, *right, *core;
    double *b_scales, *a_scales, *values;
};

static lofi_status create_room(struct room *room, size_t size)
{
    size_t square = 0;

    room->memory = NULL;
    if (__builtin_mul_overflow(size + 1, size, &square)) square = SIZE_MAX;
    room->memory = lofi__mem_create(square, 3 * sizeof(double));
    if (room->memory == NULL) return LOFI_NO_MEMORY;
    room->left = room->memory;
    room->right = room->left + size * size;
    room->core = room->right + size * size;
    room->b_scales = room->core + size * size;
    room->a_scales = room->b_scales + size;
    room->values = room->a_scales + size;
    return LOFI_OK;
}

/* Column i of a factor: Q times the square root of a singular value times a singular vector. */
static void expand(const double *small, double scale, size_t size, double *column, size_t rows)
{
    for (size_t i = 0; i < size && i < rows; i++)
        column[i] = small[i] * scale;
}

static void write_factors(const struct lofi__factors *from, const struct room *room,
                          struct lofi__factors *to)
{
    const size_t size = from->rank;

    for (size_t i = 0; i < size && i < to->rank; i++) {
        const double root = sqrt(room->values[i]);
        if (!(root > 0)) break; /* descending: the rest is zero, too */
        expand(room->core + i * size, 1 / root, size, to->b + i * to->rows, to->rows);
        expand(room->right + i * size, root, size, to->a + i * to->columns, to->columns);
        lofi__qr_apply(from->b, from->rows, size, room->b_scales, to->b + i * to->rows, 1);
        lofi__qr_apply(from->a, from->columns, size, room->a_scales, to->a + i * to->columns, 1);
    }
}

lofi_status lofi__factors_reduce(struct lofi__factors *from, struct lofi__factors *to,
                                 double *square, double *lost)
{
    const size_t size = from->rank;
    struct room room;
    double kept = 0, rest = 0;

    lofi_status st = create_room(&room, size);
    if (st != LOFI_OK) return st;
    lofi__qr(from->b, from->rows, size, room.b_scales);
    lofi__qr(from->a, from->columns, size, room.a_scales);
    copy_triangle(from->b, from->rows, size, room.left);
    copy_triangle(from->a, from->columns, size, room.right);
    multiply(room.left, room.right, size, room.core);
    lofi__svd(room.core, size, room.right, room.values);
    for (size_t i = size; i-- > 0;) /* the smallest first */
        *(i < to->rank ? &kept : &rest) += room.values[i] * room.values[i];
    write_factors(from, &room, to);
    *square = kept + rest;
    *lost = rest;
    lofi__mem_destroy(room.memory);
    return LOFI_OK;
}

double lofi__factors_square(const struct lofi__factors *factors)
{
    const size_t rows = factors->rows, columns = factors->columns;
    double sum = 0;

    for (size_t i = 0; i < factors->rank; i++)
        for (size_t j = 0; j <= i; j++)
            sum += (i == j ? 1 : 2) *
                   lofi__dot(factors->b + i * rows, factors->b + j * rows, rows) *
                   lofi__dot(factors->a + i * columns, factors->a + j * columns, columns);
    return sum;
}
