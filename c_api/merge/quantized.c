/* SPDX-License-Identifier: MIT */
/* Quantised checkpoints are refused: codes and scales would be averaged apart. */
#include "ckpt/quantized.h"
#include "ckpt/json.h"
#include "ckpt/path.h"
#include "core/mem.h"
#include "merge/check.h"

#include <string.h>

#define WHAT_TO_DO                                                                                 \
    "the mean of codes is not the code of a mean. Dequantise the checkpoints first, average "      \
    "them, "                                                                                       \
    "and quantise the average"

static int has(const void *ctx, const char *name)
{
    return lofi__checkpoint_find(ctx, name) != NULL;
}

static lofi_status check_place(const struct lofi__place *place, const lofi_checkpoint *source,
                               const struct lofi__selection *selection)
{
    const struct lofi__entry *entry = place->entry;
    int codes = 0, scales = 0;
    char scale[1024];

    const char *what =
        lofi__quantized_find(entry->name, entry->kind, has, source, scale, sizeof scale);
    if (what == NULL) return LOFI_OK;
    lofi_status st = lofi__selection_has(selection, entry->name, &codes);
    if (st == LOFI_OK) st = lofi__selection_has(selection, scale, &scales);
    if (st != LOFI_OK || !(codes || scales)) return st;
    lofi_set_error(
        "%s: the tensor '%.200s' is of %s and has its scales in '%.200s' (%s): " WHAT_TO_DO,
        place->file->path, entry->name, entry->kind->name, scale, what);
    return LOFI_INVALID;
}

static lofi_status check_config(const char *path, const char *text, size_t bytes)
{
    static const char *const keys[] = {"quantization_config", "compression_config"};
    yyjson_doc *doc = NULL;
    lofi_status st = lofi__json_read(path, text, bytes, YYJSON_READ_ALLOW_INF_AND_NAN, &doc);

    if (st == LOFI_CORRUPT) return LOFI_OK; /* the file of a stranger that says nothing */
    for (size_t i = 0; st == LOFI_OK && i < sizeof keys / sizeof keys[0]; i++) {
        yyjson_val *found = yyjson_obj_get(yyjson_doc_get_root(doc), keys[i]);
        const char *method = lofi__json_text(yyjson_obj_get(found, "quant_method"));
        if (method == NULL) continue;
        lofi_set_error("%s has a %s (%.40s): its weights are quantised, and " WHAT_TO_DO, path,
                       keys[i], method);
        st = LOFI_INVALID;
    }
    yyjson_doc_free(doc);
    return st;
}

static lofi_status check_folder(const lofi_checkpoint *source)
{
    char *text = NULL;
    size_t bytes = 0;

    lofi_status st = lofi__side_file_read(source, "config.json", &text, &bytes);
    if (st != LOFI_OK || text == NULL) return st;
    char *path = lofi__path_join(source->folder, "config.json");
    st = path != NULL ? check_config(path, text, bytes) : LOFI_NO_MEMORY;
    lofi__mem_destroy(path);
    lofi__mem_destroy(text);
    return st;
}

lofi_status lofi__quantized_check(const struct lofi__plan *plan,
                                  const struct lofi__selection *selection)
{
    lofi_status st = LOFI_OK;

    for (int s = 0; s < plan->source_count && st == LOFI_OK; s++) {
        const lofi_checkpoint *source = plan->sources[s];
        for (uint64_t i = 0; i < source->count && st == LOFI_OK; i++)
            st = check_place(&source->tensors[i], source, selection);
        if (st == LOFI_OK) st = check_folder(source);
    }
    return st;
}
