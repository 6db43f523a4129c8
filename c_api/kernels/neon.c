/* SPDX-License-Identifier: MIT */
/* The kernels with NEON, which every 64-bit Arm CPU has. */
#define VECTOR_BYTES 16
#include "kernels/kernels.h"
#include "kernels/vector.h"

#include <arm_neon.h>

/* The instruction rounds to nearest even, subnormals included. */
static inline void load_f16(const uint16_t *from, f32_vector *a, f32_vector *b)
{
    float16x4_t x, y;
    memcpy(&x, from, sizeof x);
    memcpy(&y, from + 4, sizeof y);
    *a = (f32_vector)vcvt_f32_f16(x);
    *b = (f32_vector)vcvt_f32_f16(y);
}

static inline void store_f16(uint16_t *to, f32_vector a, f32_vector b)
{
    const float16x4_t x = vcvt_f16_f32((float32x4_t)a);
    const float16x4_t y = vcvt_f16_f32((float32x4_t)b);
    memcpy(to, &x, sizeof x);
    memcpy(to + 4, &y, sizeof y);
}

/* Arm only has hints, which most cores overlook. */
static void stream(void *restrict out, const void *restrict in, size_t bytes)
{
    memcpy(out, in, bytes);
}

#define KERNELS lofi__kernels_neon
#define KERNELS_NAME "neon"
#include "kernels/table.h"
