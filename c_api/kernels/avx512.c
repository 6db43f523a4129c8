/* SPDX-License-Identifier: MIT */
/* The kernels with AVX-512: F, and BW, DQ and VL for bytes, products of int64 and halves. */
#define VECTOR_BYTES 64
#include "kernels/kernels.h"
#include "kernels/vector.h"

#include <immintrin.h>

/* The instruction rounds to nearest even, subnormals included. */
static inline void load_f16(const uint16_t *from, f32_vector *a, f32_vector *b)
{
    __m256i x, y;
    memcpy(&x, from, sizeof x);
    memcpy(&y, from + 16, sizeof y);
    *a = (f32_vector)_mm512_cvtph_ps(x);
    *b = (f32_vector)_mm512_cvtph_ps(y);
}

static inline void store_f16(uint16_t *to, f32_vector a, f32_vector b)
{
    const __m256i x = _mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT);
    const __m256i y = _mm512_cvtps_ph((__m512)b, _MM_FROUND_TO_NEAREST_INT);
    memcpy(to, &x, sizeof x);
    memcpy(to + 16, &y, sizeof y);
}

static void stream(void *restrict out, const void *restrict in, size_t bytes)
{
    const size_t whole = bytes / 64 * 64;

    for (size_t i = 0; i < whole; i += 64)
        _mm512_stream_si512((__m512i *)((char *)out + i), _mm512_loadu_si512((const char *)in + i));
    memcpy((char *)out + whole, (const char *)in + whole, bytes - whole);
    _mm_sfence(); /* such stores are ordered by nothing else, not even by a release */
}

#define KERNELS lofi__kernels_avx512
#define KERNELS_NAME "avx512"
#include "kernels/table.h"
