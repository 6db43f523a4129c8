/* SPDX-License-Identifier: MIT */
/* Sizes of dtypes, and their names as torch spells them. */
#include "lofi.h"

static const struct {
    size_t bytes;
    const char *name;
} dtypes[LOFI_DTYPE_COUNT] = {
    [LOFI_F64] = {8, "float64"},
    [LOFI_F32] = {4, "float32"},
    [LOFI_F16] = {2, "float16"},
    [LOFI_BF16] = {2, "bfloat16"},
    [LOFI_BYTES] = {1, "bytes"},
    [LOFI_I8] = {1, "int8"},
    [LOFI_U8] = {1, "uint8"},
    [LOFI_I32] = {4, "int32"},
    [LOFI_I64] = {8, "int64"},
    [LOFI_F8_E4M3] = {1, "float8_e4m3fn"},
    [LOFI_F8_E5M2] = {1, "float8_e5m2"},
};

size_t lofi_dtype_bytes(lofi_dtype dtype)
{
    int i = (int)dtype;
    return i >= 0 && i < LOFI_DTYPE_COUNT ? dtypes[i].bytes : 0;
}

const char *lofi_dtype_name(lofi_dtype dtype)
{
    int i = (int)dtype;
    return i >= 0 && i < LOFI_DTYPE_COUNT ? dtypes[i].name : "unknown";
}
