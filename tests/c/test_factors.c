/* SPDX-License-Identifier: MIT */
/* Factors against the product that they stand for, formed by brute force. */
#include "core/mem.h"
#include "lora/factors.h"
#include "test.h"

#include <math.h>

enum { MOST = 40 };

static double uniform(uint64_t *seed)
{
    return (double)(test_random(seed) >> 11) * 0x1p-53 - 0.5;
}

static void fill(struct lofi__factors *f, size_t rows, size_t columns, size_t rank, uint64_t *seed)
{
    ASSERT(lofi__factors_create(f, rows, columns, rank) == LOFI_OK);
    for (size_t i = 0; i < rows * rank; i++)
        f->b[i] = uniform(seed);
    for (size_t i = 0; i < columns * rank; i++)
        f->a[i] = uniform(seed);
}

static void multiply(const struct lofi__factors *f, double product[MOST][MOST])
{
    memset(product, 0, sizeof(double[MOST][MOST]));
    for (size_t i = 0; i < f->rank; i++)
        for (size_t row = 0; row < f->rows; row++)
            for (size_t column = 0; column < f->columns; column++)
                product[row][column] += f->b[i * f->rows + row] * f->a[i * f->columns + column];
}

static double square_of(double x[MOST][MOST], double y[MOST][MOST])
{
    double sum = 0;
    for (size_t i = 0; i < MOST; i++)
        for (size_t j = 0; j < MOST; j++)
            sum += (x[i][j] - y[i][j]) * (x[i][j] - y[i][j]);
    return sum;
}

static double whole[MOST][MOST], found[MOST][MOST], zero[MOST][MOST];

static int is_near(double x, double y, double scale)
{
    return fabs(x - y) <= 1e-12 * scale;
}

/* What is lost is what the report says, and what is kept is lost by no change of basis. */
static void test_one(size_t rows, size_t columns, size_t rank, size_t wanted, uint64_t *seed)
{
    struct lofi__factors from, to;
    double square = -1, lost = -1;

    fill(&from, rows, columns, rank, seed);
    multiply(&from, whole);
    const double truth = square_of(whole, zero);
    EXPECT(is_near(lofi__factors_square(&from), truth, truth));
    ASSERT(lofi__factors_create(&to, rows, columns, wanted) == LOFI_OK);
    EXPECT(lofi__factors_reduce(&from, &to, &square, &lost) == LOFI_OK);
    multiply(&to, found);
    EXPECT(is_near(square, truth, truth));
    EXPECT(is_near(square_of(whole, found), lost, truth));
    EXPECT(is_near(square_of(found, zero), truth - lost, truth)); /* a projection: Pythagoras */
    if (wanted >= rank || wanted >= rows || wanted >= columns) EXPECT(lost <= 1e-24 * truth);
    lofi__factors_clear(&from);
    lofi__factors_clear(&to);
}

static void test_sizes(void)
{
    uint64_t seed = 7;

    for (int round = 0; round < 1500; round++) {
        const size_t rows = 1 + (size_t)test_below(&seed, MOST);
        const size_t columns = 1 + (size_t)test_below(&seed, MOST);
        const size_t rank = 1 + (size_t)test_below(&seed, 12);
        test_one(rows, columns, rank, 1 + (size_t)test_below(&seed, 14), &seed);
    }
}

/* A matrix with singular values that are known: of every size at once, some twice, some zero. */
static void test_values(void)
{
    static const double values[] = {3e8, 5, 5, 1e-3, 2e-9, 0};
    enum { SIZE = sizeof values / sizeof values[0] };
    double a[SIZE * SIZE], v[SIZE * SIZE], found_values[SIZE], left[SIZE * SIZE];
    double scales[SIZE], right_scales[SIZE], right[SIZE * SIZE];
    uint64_t seed = 3;

    for (size_t i = 0; i < SIZE * SIZE; i++) {
        left[i] = uniform(&seed);
        right[i] = uniform(&seed);
        v[i] = i % (SIZE + 1) == 0; /* the identity */
    }
    lofi__qr(left, SIZE, SIZE, scales);
    lofi__qr(right, SIZE, SIZE, right_scales);
    lofi__qr_apply(left, SIZE, SIZE, scales, v, SIZE); /* orthogonal */
    for (size_t j = 0; j < SIZE; j++)
        for (size_t i = 0; i < SIZE; i++)
            a[i * SIZE + j] = v[j * SIZE + i] * values[j]; /* the transpose of Q diag(values) */
    lofi__qr_apply(right, SIZE, SIZE, right_scales, a, SIZE);
    lofi__svd(a, SIZE, v, found_values);
    for (size_t i = 0; i < SIZE; i++)
        EXPECT(fabs(found_values[i] - values[i]) <= 1e-14 * values[0]);
    for (size_t i = 0; i < SIZE; i++)
        for (size_t j = 0; j < SIZE; j++)
            EXPECT(is_near(lofi__dot(v + i * SIZE, v + j * SIZE, SIZE), i == j, 1));
}

/* Equal adapters: the product has half the rank of the factors. */
static void test_repeated(void)
{
    struct lofi__factors from, to;
    double square, lost;
    uint64_t seed = 5;

    fill(&from, 30, 20, 8, &seed);
    memcpy(from.a, from.a + (size_t)4 * 20, 4 * 20 * sizeof(double));
    multiply(&from, whole);
    ASSERT(lofi__factors_create(&to, 30, 20, 4) == LOFI_OK);
    EXPECT(lofi__factors_reduce(&from, &to, &square, &lost) == LOFI_OK);
    multiply(&to, found);
    EXPECT(lost <= 1e-28 * square && square_of(whole, found) <= 1e-28 * square);
    lofi__factors_clear(&from);
    lofi__factors_clear(&to);
}

static void test_zeros(void)
{
    struct lofi__factors from, to;
    double square = -1, lost = -1;

    ASSERT(lofi__factors_create(&from, 5, 6, 3) == LOFI_OK);
    ASSERT(lofi__factors_create(&to, 5, 6, 2) == LOFI_OK);
    EXPECT(lofi__factors_reduce(&from, &to, &square, &lost) == LOFI_OK);
    EXPECT(square == 0 && lost == 0);
    for (size_t i = 0; i < 10; i++)
        EXPECT(to.b[i] == 0 && to.a[i] == 0);
    lofi__factors_clear(&from);
    lofi__factors_clear(&to);
    EXPECT(lofi__factors_create(&from, SIZE_MAX / 2, 6, 3) == LOFI_INVALID);
    lofi__factors_clear(&from);
}

int main(void)
{
    test_sizes();
    test_values();
    test_repeated();
    test_zeros();
    return test_end();
}
