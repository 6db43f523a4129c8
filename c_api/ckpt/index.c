/* SPDX-License-Identifier: MIT */
/*
 * model.safetensors.index.json: {"metadata": {...}, "weight_map": {tensor: file}}.
 *
 * Files are plain names beside the index. A path, even one that stays inside, is refused: no tool
 * writes one, and whoever reads a stranger's index should not open what it points to.
 */
#include "ckpt/index.h"
#include "core/mem.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 8 /* those of transformers have 2 */

static int is_plain_name(const char *name)
{
    return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static lofi_status read_map(const char *file, yyjson_val *map, struct lofi__index *index)
{
    yyjson_val *key, *value;
    size_t i, count;

    yyjson_obj_foreach(map, i, count, key, value)
    {
        const char *tensor = lofi__json_text(key), *name = lofi__json_text(value);
        if (tensor == NULL || name == NULL) {
            lofi_set_error("%s: weight_map holds something other than names", file);
            return LOFI_CORRUPT;
        }
        if (!is_plain_name(name)) {
            lofi_set_error("%s: the tensor '%.200s' is said to be in '%.200s', which is not the "
                           "name of a file in the same folder",
                           file, tensor, name);
            return LOFI_CORRUPT;
        }
        index->entries[i] = (struct lofi__index_entry){tensor, name};
        index->count++;
    }
    return LOFI_OK;
}

/* The members that are looked for by their names. */
static lofi_status check_members(const char *file, yyjson_val *root)
{
    yyjson_val *key, *value;
    size_t i, count;
    int maps = 0, metadata = 0;

    yyjson_obj_foreach(root, i, count, key, value)
    {
        maps += yyjson_equals_str(key, "weight_map");
        metadata += yyjson_equals_str(key, "metadata");
    }
    if (maps <= 1 && metadata <= 1) return LOFI_OK;
    lofi_set_error("%s: it has the key '%s' twice", file, maps > 1 ? "weight_map" : "metadata");
    return LOFI_CORRUPT;
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static lofi_status list_files(const char *file, struct lofi__index *index)
{
    const char *name;
    uint64_t kept = 0;

    for (uint64_t i = 0; i < index->count; i++)
        index->tensors[i] = index->entries[i].tensor;
    if (lofi__json_find_double(index->tensors, index->count, &name)) {
        lofi_set_error("%s: weight_map has the tensor '%.200s' twice", file, name);
        return LOFI_CORRUPT;
    }
    for (uint64_t i = 0; i < index->count; i++)
        index->files[i] = index->entries[i].file;
    if (index->count > 1) qsort(index->files, index->count, sizeof *index->files, compare);
    for (uint64_t i = 0; i < index->count; i++)
        if (kept == 0 || strcmp(index->files[kept - 1], index->files[i]) != 0)
            index->files[kept++] = index->files[i];
    index->file_count = kept;
    return LOFI_OK;
}

lofi_status lofi__index_parse(const char *file, const char *text, size_t length,
                              struct lofi__index *index)
{
    *index = (struct lofi__index){0};
    lofi_status st = lofi__json_check_depth(file, text, length, DEPTH_MAX);
    if (st == LOFI_OK)
        st = lofi__json_read(file, text, length, YYJSON_READ_BIGNUM_AS_RAW, &index->doc);
    if (st == LOFI_OK) st = check_members(file, yyjson_doc_get_root(index->doc));
    if (st != LOFI_OK) return st;
    yyjson_val *map = yyjson_obj_get(yyjson_doc_get_root(index->doc), "weight_map");
    if (!yyjson_is_obj(map) || yyjson_obj_size(map) == 0) {
        lofi_set_error("%s: it has no weight_map, or an empty one", file);
        return LOFI_CORRUPT;
    }
    index->entries = lofi__mem_create(yyjson_obj_size(map), sizeof *index->entries);
    index->files = lofi__mem_create(yyjson_obj_size(map), sizeof *index->files);
    index->tensors = lofi__mem_create(yyjson_obj_size(map), sizeof *index->tensors);
    if (index->entries == NULL || index->files == NULL || index->tensors == NULL)
        return LOFI_NO_MEMORY;
    st = read_map(file, map, index);
    if (st == LOFI_OK) st = list_files(file, index);
    return st;
}

int lofi__index_has(const struct lofi__index *index, const char *tensor)
{
    return index->count > 0 &&
           bsearch(&tensor, index->tensors, index->count, sizeof tensor, compare) != NULL;
}

void lofi__index_clear(struct lofi__index *index)
{
    yyjson_doc_free(index->doc);
    lofi__mem_destroy(index->files);
    lofi__mem_destroy(index->tensors);
    lofi__mem_destroy(index->entries);
    *index = (struct lofi__index){0};
}
