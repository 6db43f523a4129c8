/* SPDX-License-Identifier: MIT */
/*
 * The reductions of one dtype: a template, which fold.h includes once for each. No include guard.
 *
 *   DTYPE(name)  the name with the suffix of the dtype: DTYPE(sum) is sum_f32
 *   ELEMENT      what lies in memory
 *   NUMBER       what is computed with: unsigned for integers, so that overflow wraps
 *   VECTOR       a vector of NUMBERs
 *   LOAD(from, a, b), STORE(to, a, b)
 *                as many elements as two VECTORs have, in any order that STORE undoes
 *   ORDERED      VECTOR as it is compared: signed for signed integers
 *   BITS         VECTOR as its bits
 *   IS_FLOAT     1 or 0
 *
 * All inputs are read at one place before the output is written there: each element is read once,
 * sums stay in registers, and the output may be one of the inputs. `op` is a constant wherever
 * these functions are inlined, so its choices cost nothing.
 */
#define LANES (sizeof(VECTOR) / sizeof(NUMBER))

static INLINE void DTYPE(take)(lofi_op op, NUMBER factor, const ELEMENT *from, VECTOR *a, VECTOR *b)
{
    LOAD(from, a, b);
    if (op != LOFI_PREMUL_SUM) return;
    *a = *a * factor;
    *b = *b * factor;
}

static INLINE VECTOR DTYPE(combine)(lofi_op op, VECTOR m, VECTOR x)
{
    switch (op) {
    case LOFI_PRODUCT:
        return m * x;
    case LOFI_MIN:
        return SELECT((ORDERED)x < (ORDERED)m, x, m);
    case LOFI_MAX:
        return SELECT((ORDERED)m < (ORDERED)x, x, m);
#if !IS_FLOAT
    case LOFI_BAND:
        return m & x;
    case LOFI_BOR:
        return m | x;
    case LOFI_BXOR:
        return m ^ x;
#endif
    default: /* SUM, AVG, PREMUL_SUM */
        return m + x;
    }
}

static INLINE VECTOR DTYPE(finish)(lofi_op op, VECTOR m, int inputs)
{
#if IS_FLOAT
    const NUMBER divisor = (NUMBER)inputs;
    const NUMBER reciprocal = 1 / divisor;
    /* The reciprocal of a power of two is exact: the product has the bits of the quotient. */
    if (op == LOFI_AVG) return (inputs & (inputs - 1)) == 0 ? m * reciprocal : m / divisor;
#else
    (void)op, (void)inputs;
#endif
    return m;
}

static INLINE void DTYPE(give)(lofi_op op, int inputs, ELEMENT *to, VECTOR a, VECTOR b)
{
    a = DTYPE(finish)(op, a, inputs);
    b = DTYPE(finish)(op, b, inputs);
    STORE(to, a, b);
}

/* Two vectors: where they lie if `from` has them all, else in `few`, filled up with zeros. */
static INLINE const ELEMENT *DTYPE(filled)(ELEMENT *few, const ELEMENT *from, size_t n)
{
    if (n >= 2 * LANES) return from;
    memset(few, 0, 2 * LANES * sizeof *few);
    memcpy(few, from, n * sizeof *few);
    return few;
}

static INLINE void DTYPE(fold)(lofi_op op, void *out, const void *const *in, int inputs,
                               double factor, size_t count)
{
#if IS_FLOAT
    /* Any NaN becomes the one without a payload, see round_bf16. */
    const NUMBER f = op == LOFI_PREMUL_SUM ? (NUMBER)(factor == factor ? factor : (double)NAN) : 1;
#else
    const NUMBER f = op == LOFI_PREMUL_SUM ? (NUMBER)(int64_t)factor : 1;
#endif
    VECTOR m0, m1, m2, m3, x0, x1, x2, x3;
    size_t at = 0;

    /* Four vectors at a time: the loop over inputs is short, and would cost more than the work. */
    for (; count - at >= 4 * LANES; at += 4 * LANES) {
        const ELEMENT *first = (const ELEMENT *)in[0] + at;
        ELEMENT *to = (ELEMENT *)out + at;

        DTYPE(take)(op, f, first, &m0, &m1);
        DTYPE(take)(op, f, first + 2 * LANES, &m2, &m3);
        for (int r = 1; r < inputs; r++) {
            const ELEMENT *next = (const ELEMENT *)in[r] + at;
            DTYPE(take)(op, f, next, &x0, &x1);
            DTYPE(take)(op, f, next + 2 * LANES, &x2, &x3);
            m0 = DTYPE(combine)(op, m0, x0);
            m1 = DTYPE(combine)(op, m1, x1);
            m2 = DTYPE(combine)(op, m2, x2);
            m3 = DTYPE(combine)(op, m3, x3);
        }
        DTYPE(give)(op, inputs, to, m0, m1);
        DTYPE(give)(op, inputs, to + 2 * LANES, m2, m3);
    }
    /* The rest, in two vectors. */
    while (at < count) {
        const size_t n = count - at < 2 * LANES ? count - at : 2 * LANES;
        ELEMENT few[2 * LANES];
        ELEMENT *to = n < 2 * LANES ? few : (ELEMENT *)out + at;

        DTYPE(take)(op, f, DTYPE(filled)(few, (const ELEMENT *)in[0] + at, n), &m0, &m1);
        for (int r = 1; r < inputs; r++) {
            DTYPE(take)(op, f, DTYPE(filled)(few, (const ELEMENT *)in[r] + at, n), &x0, &x1);
            m0 = DTYPE(combine)(op, m0, x0);
            m1 = DTYPE(combine)(op, m1, x1);
        }
        DTYPE(give)(op, inputs, to, m0, m1);
        if (to == few) memcpy((ELEMENT *)out + at, few, n * sizeof *few);
        at += n;
    }
}

static void DTYPE(sum)(void *out, const void *const *in, int inputs, double factor, size_t count)
{
    DTYPE(fold)(LOFI_SUM, out, in, inputs, factor, count);
}

static void DTYPE(product)(void *out, const void *const *in, int inputs, double factor,
                           size_t count)
{
    DTYPE(fold)(LOFI_PRODUCT, out, in, inputs, factor, count);
}

static void DTYPE(min)(void *out, const void *const *in, int inputs, double factor, size_t count)
{
    DTYPE(fold)(LOFI_MIN, out, in, inputs, factor, count);
}

static void DTYPE(max)(void *out, const void *const *in, int inputs, double factor, size_t count)
{
    DTYPE(fold)(LOFI_MAX, out, in, inputs, factor, count);
}

static void DTYPE(premul_sum)(void *out, const void *const *in, int inputs, double factor,
                              size_t count)
{
    DTYPE(fold)(LOFI_PREMUL_SUM, out, in, inputs, factor, count);
}

#if IS_FLOAT
static void DTYPE(avg)(void *out, const void *const *in, int inputs, double factor, size_t count)
{
    DTYPE(fold)(LOFI_AVG, out, in, inputs, factor, count);
}
#else
static void DTYPE(band)(void *out, const void *const *in, int inputs, double factor, size_t count)
{
    DTYPE(fold)(LOFI_BAND, out, in, inputs, factor, count);
}

static void DTYPE(bor)(void *out, const void *const *in, int inputs, double factor, size_t count)
{
    DTYPE(fold)(LOFI_BOR, out, in, inputs, factor, count);
}

static void DTYPE(bxor)(void *out, const void *const *in, int inputs, double factor, size_t count)
{
    DTYPE(fold)(LOFI_BXOR, out, in, inputs, factor, count);
}
#endif

#undef DTYPE
#undef ELEMENT
#undef NUMBER
#undef VECTOR
#undef LOAD
#undef STORE
#undef ORDERED
#undef BITS
#undef IS_FLOAT
#undef LANES
