/* SPDX-License-Identifier: MIT */
/*
 * The reductions of all dtypes, from the template in fold_body.h, on the vectors of the file that
 * includes this: vector.h defines them, or scalar.c with one lane each.
 */
#ifndef LOFI_KERNELS_FOLD_H
#define LOFI_KERNELS_FOLD_H

#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

#define INLINE inline __attribute__((always_inline))

/* Two vectors as they lie in memory. By memcpy, since memory is aligned to the element only. */
#define LOAD_PLAIN(from, a, b)                                                                     \
    (memcpy((a), (from), sizeof *(a)), memcpy((b), (from) + LANES, sizeof *(b)))
#define STORE_PLAIN(to, a, b) (memcpy((to), &(a), sizeof(a)), memcpy((to) + LANES, &(b), sizeof(b)))

#define DTYPE(name) name##_f64
#define ELEMENT double
#define NUMBER double
#define VECTOR f64_vector
#define LOAD LOAD_PLAIN
#define STORE STORE_PLAIN
#define ORDERED f64_vector
#define BITS u64_vector
#define IS_FLOAT 1
#include "kernels/fold_body.h"

#define DTYPE(name) name##_f32
#define ELEMENT float
#define NUMBER float
#define VECTOR f32_vector
#define LOAD LOAD_PLAIN
#define STORE STORE_PLAIN
#define ORDERED f32_vector
#define BITS u32_vector
#define IS_FLOAT 1
#include "kernels/fold_body.h"

#define DTYPE(name) name##_f16
#define ELEMENT uint16_t
#define NUMBER float
#define VECTOR f32_vector
#define LOAD load_f16
#define STORE store_f16
#define ORDERED f32_vector
#define BITS u32_vector
#define IS_FLOAT 1
#include "kernels/fold_body.h"

#define DTYPE(name) name##_bf16
#define ELEMENT uint16_t
#define NUMBER float
#define VECTOR f32_vector
#define LOAD load_bf16
#define STORE store_bf16
#define ORDERED f32_vector
#define BITS u32_vector
#define IS_FLOAT 1
#include "kernels/fold_body.h"

#define DTYPE(name) name##_i8
#define ELEMENT uint8_t
#define NUMBER uint8_t
#define VECTOR u8_vector
#define LOAD LOAD_PLAIN
#define STORE STORE_PLAIN
#define ORDERED i8_vector
#define BITS u8_vector
#define IS_FLOAT 0
#include "kernels/fold_body.h"

#define DTYPE(name) name##_u8
#define ELEMENT uint8_t
#define NUMBER uint8_t
#define VECTOR u8_vector
#define LOAD LOAD_PLAIN
#define STORE STORE_PLAIN
#define ORDERED u8_vector
#define BITS u8_vector
#define IS_FLOAT 0
#include "kernels/fold_body.h"

#define DTYPE(name) name##_i32
#define ELEMENT uint32_t
#define NUMBER uint32_t
#define VECTOR u32_vector
#define LOAD LOAD_PLAIN
#define STORE STORE_PLAIN
#define ORDERED i32_vector
#define BITS u32_vector
#define IS_FLOAT 0
#include "kernels/fold_body.h"

#define DTYPE(name) name##_i64
#define ELEMENT uint64_t
#define NUMBER uint64_t
#define VECTOR u64_vector
#define LOAD LOAD_PLAIN
#define STORE STORE_PLAIN
#define ORDERED i64_vector
#define BITS u64_vector
#define IS_FLOAT 0
#include "kernels/fold_body.h"

#endif /* LOFI_KERNELS_FOLD_H */
