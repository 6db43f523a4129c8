/* SPDX-License-Identifier: MIT */
/*
 * The reductions of an all-reduce: the scalar kernels against a truth that is computed otherwise,
 * and all other tables against the scalar one, bit for bit; also the parts of the mean. Any NaN
 * equals any NaN.
 */
#include "kernels/float8.h"
#include "kernels/kernels.h"
#include "nearest.h"
#include "test.h"

#define MAX_INPUTS 9
#define MAX_COUNT 5003
#define GUARD 64
#define SHIFTS 16 /* elements by which buffers begin later than aligned */
#define BUFFER_BYTES (8 * (MAX_COUNT + SHIFTS) + 2 * GUARD)

static uint64_t seed = 5;

/* They have means, and no reductions. */
static int is_float8(lofi_dtype dtype)
{
    return dtype == LOFI_F8_E4M3 || dtype == LOFI_F8_E5M2;
}

static int is_float(lofi_dtype dtype)
{
    return dtype <= LOFI_BF16 || is_float8(dtype);
}

static int is_defined(lofi_op op, lofi_dtype dtype)
{
    int is_bitwise = op == LOFI_BAND || op == LOFI_BOR || op == LOFI_BXOR;
    if (dtype == LOFI_BYTES || is_float8(dtype)) return 0;
    return is_float(dtype) ? !is_bitwise : op != LOFI_AVG;
}

/* ---- elements -------------------------------------------------------------------------------- */

static uint64_t bits_at(lofi_dtype dtype, const void *data, size_t i)
{
    const size_t bytes = lofi_dtype_bytes(dtype);
    const unsigned char *at = (const unsigned char *)data + i * bytes;
    uint64_t word;
    uint32_t half;
    uint16_t quarter;
    switch (bytes) {
    case 8:
        memcpy(&word, at, 8);
        return word;
    case 4:
        memcpy(&half, at, 4);
        return half;
    case 2:
        memcpy(&quarter, at, 2);
        return quarter;
    default:
        return *at;
    }
}

static void put_bits(lofi_dtype dtype, void *data, size_t i, uint64_t bits)
{
    const size_t bytes = lofi_dtype_bytes(dtype);
    unsigned char *at = (unsigned char *)data + i * bytes;
    const uint32_t half = (uint32_t)bits;
    const uint16_t quarter = (uint16_t)bits;
    switch (bytes) {
    case 8:
        memcpy(at, &bits, 8);
        break;
    case 4:
        memcpy(at, &half, 4);
        break;
    case 2:
        memcpy(at, &quarter, 2);
        break;
    default:
        *at = (unsigned char)bits;
        break;
    }
}

static double float_of(lofi_dtype dtype, uint64_t bits)
{
    switch (dtype) {
    case LOFI_F64:
        return lofi__f64_of(bits);
    case LOFI_F32:
        return (double)lofi__f32_of((uint32_t)bits);
    case LOFI_F8_E4M3:
        return lofi__e4m3_to_f64((uint8_t)bits);
    case LOFI_F8_E5M2:
        return lofi__e5m2_to_f64((uint8_t)bits);
    default:
        return formats[dtype == LOFI_BF16].widen((uint16_t)bits);
    }
}

static int64_t integer_of(lofi_dtype dtype, uint64_t bits)
{
    switch (dtype) {
    case LOFI_I8:
        return bits < 128 ? (int64_t)bits : (int64_t)bits - 256;
    case LOFI_U8:
        return (int64_t)bits;
    case LOFI_I32:
        return bits <= INT32_MAX ? (int64_t)bits : (int64_t)bits - (INT64_C(1) << 32);
    default:
        return bits <= INT64_MAX ? (int64_t)bits : -1 - (int64_t)~bits;
    }
}

static int same(lofi_dtype dtype, uint64_t a, uint64_t b)
{
    return a == b || (is_float(dtype) && isnan(float_of(dtype, a)) && isnan(float_of(dtype, b)));
}

static int all_same(lofi_dtype dtype, const void *a, const void *b, size_t count)
{
    if (memcmp(a, b, count * lofi_dtype_bytes(dtype)) == 0) return 1;
    for (size_t i = 0; i < count; i++)
        if (!same(dtype, bits_at(dtype, a, i), bits_at(dtype, b, i))) return 0;
    return 1;
}

/* ---- the truth ------------------------------------------------------------------------------- */

/* To the precision of sums. Sum, product and quotient of floats in double, rounded to float, are
 * those of float: a double has more than twice the bits. */
static double rounded(lofi_dtype dtype, double value)
{
    volatile double apart = value;
    return dtype == LOFI_F64 ? apart : (double)(float)apart;
}

static uint64_t true_float(lofi_op op, lofi_dtype dtype, const uint64_t *x, int inputs,
                           double factor)
{
    double m = 0;
    for (int r = 0; r < inputs; r++) {
        double value = float_of(dtype, x[r]);
        if (op == LOFI_PREMUL_SUM) value = rounded(dtype, value * rounded(dtype, factor));
        if (r == 0)
            m = value;
        else if (op == LOFI_PRODUCT)
            m = rounded(dtype, m * value);
        else if (op == LOFI_MIN)
            m = isless(value, m) ? value : m;
        else if (op == LOFI_MAX)
            m = isgreater(value, m) ? value : m;
        else
            m = rounded(dtype, m + value);
    }
    if (op == LOFI_AVG) m = rounded(dtype, m / inputs);
    if (dtype == LOFI_F64) return lofi__f64_bits(m);
    if (dtype == LOFI_F32) return lofi__f32_bits((float)m);
    const struct format *f = &formats[dtype == LOFI_BF16];
    return isnan(m) ? (uint64_t)f->infinity + 1 : search(f, m);
}

/* In int64; what is cut off at the end has no part in what is left. */
static uint64_t true_integer(lofi_op op, lofi_dtype dtype, const uint64_t *x, int inputs,
                             double factor)
{
    int64_t m = 0;
    for (int r = 0; r < inputs; r++) {
        int64_t value = integer_of(dtype, x[r]);
        if (op == LOFI_PREMUL_SUM) (void)__builtin_mul_overflow(value, (int64_t)factor, &value);
        if (r == 0)
            m = value;
        else if (op == LOFI_PRODUCT)
            (void)__builtin_mul_overflow(m, value, &m);
        else if (op == LOFI_MIN || op == LOFI_MAX)
            m = (op == LOFI_MIN) == (value < m) ? value : m;
        else if (op == LOFI_BAND)
            m &= value;
        else if (op == LOFI_BOR)
            m |= value;
        else if (op == LOFI_BXOR)
            m ^= value;
        else
            (void)__builtin_add_overflow(m, value, &m);
    }
    return (uint64_t)m & (UINT64_MAX >> (64 - 8 * lofi_dtype_bytes(dtype)));
}

static void check_true(lofi_op op, lofi_dtype dtype, const void *const *in, int inputs,
                       double factor, size_t count)
{
    static uint64_t out[MAX_COUNT];
    uint64_t x[MAX_INPUTS];

    lofi__kernels_scalar.fold[op][dtype](out, in, inputs, factor, count);
    for (size_t i = 0; i < count; i++) {
        for (int r = 0; r < inputs; r++)
            x[r] = bits_at(dtype, in[r], i);
        uint64_t expected = is_float(dtype) ? true_float(op, dtype, x, inputs, factor)
                                            : true_integer(op, dtype, x, inputs, factor);
        if (EXPECT(same(dtype, bits_at(dtype, out, i), expected))) continue;
        fprintf(stderr, "  %s of %d %s: %#llx %#llx ... gave %#llx, not %#llx\n", lofi_op_name(op),
                inputs, lofi_dtype_name(dtype), (unsigned long long)x[0],
                (unsigned long long)x[inputs > 1], (unsigned long long)bits_at(dtype, out, i),
                (unsigned long long)expected);
    }
}

/* ---- patterns -------------------------------------------------------------------------------- */

static const struct {
    int exponent_bits, mantissa_bits;
} layout[LOFI_DTYPE_COUNT] = {
    [LOFI_F64] = {11, 52}, [LOFI_F32] = {8, 23},    [LOFI_F16] = {5, 10},
    [LOFI_BF16] = {8, 7},  [LOFI_F8_E4M3] = {4, 3}, [LOFI_F8_E5M2] = {5, 2}};

/* A float with an exponent near either end or near 1, or any, and few or many bits. */
static uint64_t float_pattern(lofi_dtype dtype)
{
    const int mantissa_bits = layout[dtype].mantissa_bits;
    const int top = (1 << layout[dtype].exponent_bits) - 1;
    const uint64_t mask = (UINT64_C(1) << mantissa_bits) - 1;
    const uint64_t random = test_random(&seed);
    const int near = test_below(&seed, 3);
    const int exponents[] = {near, top - near, top / 2 - 1 + near, top / 2 - 1 + near,
                             test_below(&seed, top + 1)};
    const uint64_t mantissas[] = {
        0, 1, mask, mask - 1, mask / 2, mask / 2 + 1, random & mask, random & mask};
    const uint64_t sign = random >> 63;
    return ((sign << layout[dtype].exponent_bits | (uint64_t)exponents[test_below(&seed, 5)])
            << mantissa_bits) |
           mantissas[test_below(&seed, 8)];
}

static uint64_t pattern(lofi_dtype dtype, int is_tame)
{
    static const uint64_t ends[] = {0, 1, UINT64_MAX, (uint64_t)INT64_MAX, (uint64_t)INT64_MIN};
    const uint64_t random = test_random(&seed);
    const int choice = test_below(&seed, 4);

    if (!is_float(dtype)) /* the upper bits, so that the ends are those of each size */
        return (choice == 0 ? ends[test_below(&seed, 5)] : random) >>
               (64 - 8 * lofi_dtype_bytes(dtype));
    if (!is_tame) return choice == 0 ? random : float_pattern(dtype);
    const double value = (double)(int64_t)random * 0x1p-62;
    if (dtype == LOFI_F64) return lofi__f64_bits(value);
    if (dtype == LOFI_F32) return lofi__f32_bits((float)value);
    if (dtype == LOFI_F8_E4M3) return lofi__f64_to_e4m3(value);
    if (dtype == LOFI_F8_E5M2) return lofi__f64_to_e5m2(value);
    return formats[dtype == LOFI_BF16].narrow(value);
}

static double factor_of(lofi_dtype dtype, unsigned i)
{
    static const double floats[] = {0.1, 4.0, -3.0, 1e-30, 1e300, -0.0, INFINITY, 1.0 / 3};
    static const double integers[] = {3, -1, 0, 1e9, -0x1p63, 0x1p62, 257, 0x1p32 + 1};
    if (is_float(dtype) && i % 9 == 8) return lofi__f64_of(UINT64_C(0x7fffffffffffffff)); /* NaN */
    return (is_float(dtype) ? floats : integers)[i % 8];
}

/* ---- scalar against the truth ---------------------------------------------------------------- */

static _Alignas(64) unsigned char data[MAX_INPUTS][BUFFER_BYTES];

static void fill(lofi_dtype dtype, int is_tame)
{
    const size_t count = BUFFER_BYTES / lofi_dtype_bytes(dtype);
    for (int r = 0; r < MAX_INPUTS; r++)
        for (size_t i = 0; i < (count < MAX_COUNT + SHIFTS ? count : MAX_COUNT + SHIFTS); i++)
            put_bits(dtype, data[r], i, pattern(dtype, is_tame));
}

static void test_truth(lofi_op op, lofi_dtype dtype)
{
    const void *in[MAX_INPUTS];
    const size_t bytes = lofi_dtype_bytes(dtype);
    for (int inputs = 1; inputs <= MAX_INPUTS; inputs++) {
        for (int r = 0; r < inputs; r++)
            in[r] = data[r] + bytes * (size_t)r;
        for (unsigned i = 0; i < (op == LOFI_PREMUL_SUM ? 9 : 1); i++)
            check_true(op, dtype, in, inputs, factor_of(dtype, i), 300);
    }
}

/* Every exponent, with mantissas that make ties and carries, against every other: what 16 bits
 * can round. Of bfloat16's exponents the ends, the middle and some. */
static int list_halves(lofi_dtype dtype, uint16_t *list)
{
    const int mantissa_bits = layout[dtype].mantissa_bits;
    const int top = (1 << layout[dtype].exponent_bits) - 1;
    const int mask = (1 << mantissa_bits) - 1;
    const int mantissas[] = {0, 1, mask / 2 + 1, mask};
    int count = 0;
    for (int exponent = 0; exponent <= top; exponent++) {
        int from_middle = abs(exponent - top / 2);
        if (top > 31 && exponent > 2 && exponent < top - 2 && from_middle > 4 && exponent % 16 > 0)
            continue;
        for (int i = 0; i < 8; i++)
            list[count++] =
                (uint16_t)((i & 1) << 15 | exponent << mantissa_bits | mantissas[i / 2]);
    }
    return count;
}

static void test_pairs(lofi_op op, lofi_dtype dtype)
{
    static uint16_t list[512], other[512];
    const void *pair[2] = {list, other};
    const int count = list_halves(dtype, list);
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < count; j++)
            other[j] = list[i];
        check_true(op, dtype, pair, 2, 1.0, (size_t)count);
    }
}

/* ---- other tables against scalar ------------------------------------------------------------- */

static _Alignas(64) unsigned char output[BUFFER_BYTES], expected[BUFFER_BYTES];

static int guard_holds(const unsigned char *guard)
{
    for (int i = 0; i < GUARD; i++)
        if (guard[i] != 0xa5) return 0;
    return 1;
}

/* `place`: the input whose memory the output is; -1: its own. `shift` differs between buffers. */
static void check_fold(const struct lofi__kernels *kernels, lofi_op op, lofi_dtype dtype,
                       int inputs, size_t count, int place, unsigned shift)
{
    const size_t bytes = lofi_dtype_bytes(dtype);
    const double factor = factor_of(dtype, shift);
    unsigned char *out = output + GUARD + bytes * (shift % SHIFTS);
    const void *in[MAX_INPUTS];

    for (int r = 0; r < inputs; r++)
        in[r] = data[r] + bytes * ((shift + 5 * (unsigned)r) % SHIFTS);
    lofi__kernels_scalar.fold[op][dtype](expected, in, inputs, factor, count);
    memset(out - GUARD, 0xa5, count * bytes + 2 * GUARD);
    if (place >= 0) {
        memcpy(out, in[place], count * bytes);
        in[place] = out;
    }
    kernels->fold[op][dtype](out, in, inputs, factor, count);
    if (!EXPECT(all_same(dtype, out, expected, count)))
        fprintf(stderr, "  %s: %s of %d x %zu %s, output %d\n", kernels->name, lofi_op_name(op),
                inputs, count, lofi_dtype_name(dtype), place);
    EXPECT(guard_holds(out - GUARD) && guard_holds(out + count * bytes));
}

static void test_table(const struct lofi__kernels *kernels, lofi_op op, lofi_dtype dtype)
{
    static const size_t large[] = {255, 256, 1000, 2049, MAX_COUNT};
    unsigned shift = 0;

    for (int inputs = 1; inputs <= MAX_INPUTS; inputs++) {
        for (size_t count = 0; count <= 130; count++, shift++)
            check_fold(kernels, op, dtype, inputs, count, (int)(shift % 3) * inputs / 3 - 1, shift);
        for (size_t i = 0; i < sizeof large / sizeof large[0]; i++, shift++)
            for (int place = -1; place < inputs; place += inputs == 1 ? 1 : inputs - 1)
                check_fold(kernels, op, dtype, inputs, large[i], place, shift);
    }
}

/* Memory that ends where the elements end: for the sanitizers, which see what is read too. */
static void test_ends(lofi_op op, lofi_dtype dtype)
{
    const struct lofi__kernels *kernels;
    for (int i = 0; (kernels = lofi__kernels_at(i)) != NULL; i++)
        for (size_t count = 1; count <= 130; count += 1 + count / 8) {
            const size_t bytes = count * lofi_dtype_bytes(dtype);
            void *first = malloc(bytes), *second = malloc(bytes), *out = malloc(bytes);
            const void *in[2] = {first, second};
            ASSERT(first != NULL && second != NULL && out != NULL);
            memcpy(first, data[0], bytes);
            memcpy(second, data[1], bytes);
            kernels->fold[op][dtype](out, in, 2, 1.0, count);
            free(first), free(second), free(out);
        }
}

static void test_folds(void)
{
    const struct lofi__kernels *kernels;

    for (int o = 0; o < LOFI_OP_COUNT; o++)
        for (int d = 0; d < LOFI_DTYPE_COUNT; d++)
            for (int i = 0; (kernels = lofi__kernels_at(i)) != NULL; i++)
                EXPECT((kernels->fold[o][d] != NULL) == is_defined((lofi_op)o, (lofi_dtype)d));
    for (int d = 0; d < LOFI_DTYPE_COUNT; d++)
        for (int is_tame = 0; is_tame < 2; is_tame++) {
            lofi_dtype dtype = (lofi_dtype)d;
            fill(dtype, is_tame);
            for (int o = 0; o < LOFI_OP_COUNT; o++) {
                lofi_op op = (lofi_op)o;
                if (!is_defined(op, dtype)) continue;
                test_truth(op, dtype);
                if (lofi_dtype_bytes(dtype) == 2 && is_tame) test_pairs(op, dtype);
                test_ends(op, dtype);
                for (int i = 0; (kernels = lofi__kernels_at(i)) != NULL; i++)
                    test_table(kernels, op, dtype);
            }
        }
}

/* ---- the parts of the mean ------------------------------------------------------------------- */

static double sums[MAX_COUNT + SHIFTS], expected_sums[MAX_COUNT + SHIFTS];

static void check_mean(const struct lofi__kernels *kernels, lofi_dtype dtype, size_t count,
                       unsigned shift)
{
    const struct lofi__kernels *scalar = &lofi__kernels_scalar;
    const size_t bytes = lofi_dtype_bytes(dtype);
    const double weight = fabs(factor_of(LOFI_F64, shift));
    const double divisor = shift % 3 == 0 ? 4.0 : 0.7;
    const void *first = data[0] + bytes * (shift % SHIFTS), *second = data[1];
    double *sum = sums + shift % SHIFTS;
    unsigned char *out = output + GUARD + bytes * (shift % 7);

    scalar->begin[dtype](expected_sums, first, weight, count);
    kernels->begin[dtype](sum, first, weight, count);
    EXPECT(all_same(LOFI_F64, sum, expected_sums, count));
    scalar->add[dtype](expected_sums, second, weight, count);
    kernels->add[dtype](sum, second, weight, count);
    EXPECT(all_same(LOFI_F64, sum, expected_sums, count));
    scalar->divide(expected_sums, divisor, count);
    kernels->divide(sum, divisor, count);
    EXPECT(all_same(LOFI_F64, sum, expected_sums, count));
    memset(out - GUARD, 0xa5, count * bytes + 2 * GUARD);
    scalar->narrow[dtype](expected, expected_sums, count);
    kernels->narrow[dtype](out, sum, count);
    if (!EXPECT(all_same(dtype, out, expected, count)))
        fprintf(stderr, "  %s: %zu %s\n", kernels->name, count, lofi_dtype_name(dtype));
    EXPECT(guard_holds(out - GUARD) && guard_holds(out + count * bytes));
    for (size_t i = 0; i < count; i += 1 + count / 3)
        EXPECT(kernels->any_nonfinite[dtype](out + i * bytes, count - i) ==
               scalar->any_nonfinite[dtype](out + i * bytes, count - i));
}

static void test_means(void)
{
    const struct lofi__kernels *kernels;
    for (int d = 0; d < LOFI_DTYPE_COUNT; d++)
        for (int is_tame = 0; is_tame < 2 && is_float((lofi_dtype)d); is_tame++) {
            unsigned shift = 0;
            fill((lofi_dtype)d, is_tame);
            for (int i = 0; (kernels = lofi__kernels_at(i)) != NULL; i++) {
                for (size_t count = 0; count <= 130; count++)
                    check_mean(kernels, (lofi_dtype)d, count, shift++);
                for (int j = 0; j < 9; j++)
                    check_mean(kernels, (lofi_dtype)d, MAX_COUNT, shift++);
            }
        }
}

/* narrow also gets what no mean of the dtype gives: doubles of any kind. */
static void test_narrow(void)
{
    const struct lofi__kernels *kernels;
    for (int round = 0; round < 30; round++) {
        for (int i = 0; i < MAX_COUNT; i++) {
            double wild = lofi__f64_of(pattern(LOFI_F64, 0));
            double near = ldexp(lofi__f64_of(pattern(LOFI_F64, 1)), test_below(&seed, 300) - 150);
            sums[i] = i % 2 ? wild : near;
        }
        for (int d = 0; d < LOFI_DTYPE_COUNT; d++) {
            if (!is_float((lofi_dtype)d)) continue;
            lofi__kernels_scalar.narrow[d](expected, sums, MAX_COUNT);
            for (int i = 0; (kernels = lofi__kernels_at(i)) != NULL; i++) {
                kernels->narrow[d](output, sums, MAX_COUNT);
                EXPECT(all_same((lofi_dtype)d, output, expected, MAX_COUNT));
            }
        }
    }
}

static void test_tables(void)
{
    const struct lofi__kernels *kernels, *last = NULL;
    for (int i = 0; (kernels = lofi__kernels_at(i)) != NULL; i++) {
        printf("%s%s", i > 0 ? ", " : "kernels: ", kernels->name);
        last = kernels;
    }
    printf("\n");
    EXPECT(last == &lofi__kernels_scalar);
    EXPECT(lofi__kernels_get() == lofi__kernels_at(0));
    EXPECT(lofi__kernels_get() == lofi__kernels_at(0)); /* from the cache */
}

/* Copies of any size and source, to a line, and not a byte further. */
static void test_stream(const struct lofi__kernels *kernels)
{
    static const size_t sizes[] = {0, 1, 31, 63, 64, 65, 127, 1000, 4096, 70001};
    _Alignas(64) static char out[70200];
    static char in[70200];

    for (size_t i = 0; i < sizeof in; i++)
        in[i] = (char)(i * 31 + i / 251);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (size_t shift = 0; shift < 3; shift++) {
            memset(out, 0x5a, sizeof out);
            kernels->stream(out, in + shift, sizes[i]);
            EXPECT(memcmp(out, in + shift, sizes[i]) == 0);
            EXPECT(out[sizes[i]] == 0x5a);
        }
}

int main(void)
{
    test_tables();
    test_folds();
    test_means();
    test_narrow();
    for (int i = 0; lofi__kernels_at(i) != NULL; i++)
        test_stream(lofi__kernels_at(i));
    return test_end();
}
