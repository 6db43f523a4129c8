/* SPDX-License-Identifier: MIT */
/* The kernels with AVX2 and F16C. */
#define VECTOR_BYTES 32
#include "kernels/kernels.h"
#include "kernels/vector.h"

#include <immintrin.h>

/* The instruction rounds to nearest even, subnormals included. */
static inline void load_f16(const uint16_t *from, f32_vector *a, f32_vector *b)
{
    __m128i x, y;
    memcpy(&x, from, sizeof x);
    memcpy(&y, from + 8, sizeof y);
    *a = (f32_vector)_mm256_cvtph_ps(x);
    *b = (f32_vector)_mm256_cvtph_ps(y);
}

static inline void store_f16(uint16_t *to, f32_vector a, f32_vector b)
{
    const __m128i x = _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT);
    const __m128i y = _mm256_cvtps_ph((__m256)b, _MM_FROUND_TO_NEAREST_INT);
    memcpy(to, &x, sizeof x);
    memcpy(to + 8, &y, sizeof y);
}

static void stream(void *restrict out, const void *restrict in, size_t bytes)
{
    const size_t whole = bytes / 32 * 32;

    for (size_t i = 0; i < whole; i += 32) {
        __m256i block;
        memcpy(&block, (const char *)in + i, sizeof block);
        _mm256_stream_si256((__m256i *)((char *)out + i), block);
    }
    memcpy((char *)out + whole, (const char *)in + whole, bytes - whole);
    _mm_sfence(); /* such stores are ordered by nothing else, not even by a release */
}

#define KERNELS lofi__kernels_avx2
#define KERNELS_NAME "avx2"
#include "kernels/table.h"
