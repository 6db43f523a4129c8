/* SPDX-License-Identifier: MIT */
/*
 * The table of dtypes.
 *
 * A complex number is averaged as two floats. E8M0 are scales of other tensors, the FNUZ variants
 * are those of one vendor, and F4 and F6 are packed and mean nothing without their scales: a mean
 * of each by itself would be wrong or of no use, so they are carried over if they are equal.
 */
#include "ckpt/kind.h"

#include <string.h>
#include <strings.h>

static const struct lofi__kind kinds[] = {
    {"F64", 64, 1, LOFI__KIND_FLOAT, LOFI_F64},
    {"F32", 32, 1, LOFI__KIND_FLOAT, LOFI_F32},
    {"F16", 16, 1, LOFI__KIND_FLOAT, LOFI_F16},
    {"BF16", 16, 1, LOFI__KIND_FLOAT, LOFI_BF16},
    {"F8_E4M3", 8, 1, LOFI__KIND_FLOAT, LOFI_F8_E4M3},
    {"F8_E5M2", 8, 1, LOFI__KIND_FLOAT, LOFI_F8_E5M2},
    {"C64", 64, 2, LOFI__KIND_FLOAT, LOFI_F32},
    {"I64", 64, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"U64", 64, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"I32", 32, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"U32", 32, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"I16", 16, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"U16", 16, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"I8", 8, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"U8", 8, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"BOOL", 8, 1, LOFI__KIND_EXACT, LOFI_BYTES},
    {"F8_E8M0", 8, 1, LOFI__KIND_OPAQUE, LOFI_BYTES},
    {"F8_E4M3FNUZ", 8, 1, LOFI__KIND_OPAQUE, LOFI_BYTES},
    {"F8_E5M2FNUZ", 8, 1, LOFI__KIND_OPAQUE, LOFI_BYTES},
    {"F6_E2M3", 6, 1, LOFI__KIND_OPAQUE, LOFI_BYTES},
    {"F6_E3M2", 6, 1, LOFI__KIND_OPAQUE, LOFI_BYTES},
    {"F4", 4, 1, LOFI__KIND_OPAQUE, LOFI_BYTES},
};
#define KIND_COUNT (sizeof kinds / sizeof kinds[0])

static const struct {
    const char *word, *name;
} words[] = {{"fp64", "F64"}, {"fp32", "F32"}, {"fp16", "F16"}, {"fp8", "F8_E4M3"}};

const struct lofi__kind *lofi__kind_of(const char *name, size_t length)
{
    for (size_t i = 0; i < KIND_COUNT; i++)
        if (strlen(kinds[i].name) == length && memcmp(kinds[i].name, name, length) == 0)
            return &kinds[i];
    return NULL;
}

const struct lofi__kind *lofi__kind_parse(const char *word)
{
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcasecmp(word, words[i].word) == 0) word = words[i].name;
    for (size_t i = 0; i < KIND_COUNT; i++) {
        const struct lofi__kind *kind = &kinds[i];
        if (kind->class != LOFI__KIND_FLOAT || kind->lanes != 1) continue;
        if (strcasecmp(word, kind->name) == 0) return kind;
        if (strcasecmp(word, lofi_dtype_name(kind->dtype)) == 0) return kind;
    }
    lofi_set_error("the dtype is '%.64s': choose float64, float32, float16, bfloat16, "
                   "float8_e4m3fn or float8_e5m2",
                   word);
    return NULL;
}
