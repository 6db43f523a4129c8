/* SPDX-License-Identifier: MIT */
/*
 * Layouts of quantised weights, by the names that their writers give to a tensor of codes and to
 * what belongs to it. A name alone proves nothing: the codes must be of a dtype for codes, and the
 * other tensor must be there. So position_ids, num_batches_tracked, relative_position_index or the
 * "scale" of a norm are no codes, whatever they are called.
 */
#include "ckpt/quantized.h"
#include "core/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct layout {
    const char *what;
    const char *codes, *scales; /* the ends of both names, after the same beginning */
};

static const struct layout layouts[] = {
    {"scaled 8-bit weights", "weight", "weight_scale"},
    {"scaled 8-bit weights", "weight", "weight_scale_inv"},
    {"scaled 8-bit weights", "weight", "scale_weight"},
    {"scaled 8-bit weights", "weight", "weight_scaling_factor"},
    {"scaled 8-bit weights", "weight", "weights_scaling_factor"},
    {"scaled 8-bit weights", "weight", "scale"},
    {"scaled 8-bit weights", "", "_scale"},
    {"scaled 8-bit weights", "", "_scale_inv"},
    {"scaled 8-bit weights", "", ".scale"},
    {"bitsandbytes", "weight", "SCB"},
    {"bitsandbytes", "", ".absmax"},
    {"bitsandbytes", "", ".quant_map"},
    {"GPTQ or AWQ", "qweight", "scales"},
    {"GPTQ or AWQ", "qweight", "qzeros"},
    {"compressed-tensors", "weight_packed", "weight_scale"},
    {"HQQ", "W_q", "scale"},
    {"HQQ", "W_q", "meta"},
    {"MXFP4", "_blocks", "_scales"},
    {"quanto", "._data", "._scale"},
    {"torchao", "_qdata", "_scale"},
    {"torchao", ":qdata", ":scale"},
};

/* Integers of 64 bits count and index; what is smaller, or a float of 8 bits or fewer, may be a
 * code. */
static int may_be_codes(const struct lofi__kind *kind)
{
    if (strcmp(kind->name, "BOOL") == 0 || kind->bits > 32) return 0;
    return kind->class == LOFI__KIND_EXACT || kind->bits <= 8;
}

/* Scales of whole numbers are as good as none of these: a name that ends in nothing in particular
 * needs codes of 8 bits. */
static int fits(const struct layout *layout, const struct lofi__kind *kind)
{
    return layout->codes[0] != '\0' || kind->bits <= 8;
}

const char *lofi__quantized_find(const char *name, const struct lofi__kind *kind, lofi__has_fn has,
                                 const void *ctx, char *scale, size_t bytes)
{
    const size_t length = strlen(name);

    if (!may_be_codes(kind)) return NULL;
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        const size_t end = strlen(layouts[i].codes);
        if (length < end || strcmp(name + length - end, layouts[i].codes) != 0) continue;
        if (!fits(&layouts[i], kind)) continue;
        const int put =
            snprintf(scale, bytes, "%.*s%s", (int)(length - end), name, layouts[i].scales);
        if (put > 0 && (size_t)put < bytes && has(ctx, scale)) return layouts[i].what;
    }
    return NULL;
}

/* ---- among names of a caller ----------------------------------------------------------------- */

struct sorted {
    const char **names;
    size_t count;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int is_among(const void *ctx, const char *name)
{
    const struct sorted *sorted = ctx;
    return bsearch(&name, sorted->names, sorted->count, sizeof *sorted->names, by_name) != NULL;
}

static size_t index_of(const char *name, const char *const *names, size_t count)
{
    size_t i = 0;
    while (i < count && strcmp(names[i], name) != 0)
        i++;
    return i;
}

int64_t lofi_names_find_quantised(const char *const *names, const char *const *dtypes, size_t count,
                                  size_t *scales)
{
    struct sorted sorted = {.names = lofi__mem_create(count, sizeof *names), .count = count};
    int64_t found = -1;
    char scale[1024];

    if (sorted.names == NULL) return -2;
    for (size_t i = 0; i < count; i++)
        sorted.names[i] = names[i];
    qsort(sorted.names, count, sizeof *sorted.names, by_name);
    for (size_t i = 0; i < count && found < 0; i++) {
        const struct lofi__kind *kind = lofi__kind_of(dtypes[i], strlen(dtypes[i]));
        if (kind == NULL ||
            lofi__quantized_find(names[i], kind, is_among, &sorted, scale, sizeof scale) == NULL)
            continue;
        found = (int64_t)i;
        *scales = index_of(scale, names, count);
    }
    lofi__mem_destroy(sorted.names);
    return found;
}
