/* SPDX-License-Identifier: MIT */
/*
 * A checkpoint: one file, or the shards that an index names, seen as one list of tensors.
 *
 * Tensors are found by binary search over their sorted names; a hash would need one that strangers
 * can't aim at. All files stay open, so that what was checked is what is read.
 */
#define _GNU_SOURCE
#include "ckpt/checkpoint.h"
#include "ckpt/foreign.h"
#include "ckpt/index.h"
#include "ckpt/locate.h"
#include "ckpt/path.h"
#include "core/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static lofi_status open_files(lofi_checkpoint *c, char *const *paths, uint64_t count)
{
    c->files = lofi__mem_create(count, sizeof *c->files);
    if (c->files == NULL) return LOFI_NO_MEMORY;
    for (uint64_t i = 0; i < count; i++) {
        lofi_status st = c->folder != NULL ? lofi__path_check_inside(c->folder, paths[i]) : LOFI_OK;
        if (st != LOFI_OK) return st;
        c->file_count++; /* also one that fails to open is closed */
        st = lofi__file_open(paths[i], &c->files[i]);
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}

static lofi_status open_shards(lofi_checkpoint *c, const struct lofi__index *index)
{
    char **paths = lofi__mem_create(index->file_count, sizeof *paths);
    lofi_status st = paths != NULL ? LOFI_OK : LOFI_NO_MEMORY;

    for (uint64_t i = 0; i < index->file_count && st == LOFI_OK; i++) {
        paths[i] = lofi__path_join(c->folder, index->files[i]);
        if (paths[i] == NULL) st = LOFI_NO_MEMORY;
    }
    if (st == LOFI_OK) st = open_files(c, paths, index->file_count);
    for (uint64_t i = 0; paths != NULL && i < index->file_count; i++)
        lofi__mem_destroy(paths[i]);
    lofi__mem_destroy(paths);
    return st;
}

struct named {
    const char *name;
    uint64_t number;
};

static int compare_named(const void *a, const void *b)
{
    return strcmp(((const struct named *)a)->name, ((const struct named *)b)->name);
}

/* Sorts the names, and refuses one that two files have. */
static lofi_status sort_names(lofi_checkpoint *c)
{
    struct named *list = lofi__mem_create(c->count, sizeof *list);
    lofi_status st = LOFI_OK;

    c->by_name = lofi__mem_create(c->count, sizeof *c->by_name);
    if (list == NULL || c->by_name == NULL) st = LOFI_NO_MEMORY;
    for (uint64_t i = 0; st == LOFI_OK && i < c->count; i++)
        list[i] = (struct named){c->tensors[i].entry->name, i};
    if (st == LOFI_OK && c->count > 1) qsort(list, c->count, sizeof *list, compare_named);
    for (uint64_t i = 0; st == LOFI_OK && i < c->count; i++) {
        c->by_name[i] = list[i].number;
        if (i == 0 || strcmp(list[i - 1].name, list[i].name) != 0) continue;
        lofi_set_error("%s: the tensor '%.200s' is in %s and in %s", c->path, list[i].name,
                       c->tensors[list[i - 1].number].file->name,
                       c->tensors[list[i].number].file->name);
        st = LOFI_CORRUPT;
    }
    lofi__mem_destroy(list);
    return st;
}

static lofi_status list_tensors(lofi_checkpoint *c)
{
    for (uint64_t f = 0; f < c->file_count; f++)
        c->count += c->files[f].header.count;
    c->tensors = lofi__mem_create(c->count, sizeof *c->tensors);
    if (c->tensors == NULL) return LOFI_NO_MEMORY;
    uint64_t next = 0;
    for (uint64_t f = 0; f < c->file_count; f++)
        for (uint64_t i = 0; i < c->files[f].header.count; i++)
            c->tensors[next++] = (struct lofi__place){&c->files[f], &c->files[f].header.entries[i]};
    return sort_names(c);
}

/* The index and the shards must say the same. */
static lofi_status check_index(const lofi_checkpoint *c, const struct lofi__index *index)
{
    for (uint64_t i = 0; i < index->count; i++) {
        const struct lofi__index_entry *e = &index->entries[i];
        const struct lofi__place *place = lofi__checkpoint_find(c, e->tensor);
        if (place != NULL && strcmp(place->file->name, e->file) == 0) continue;
        lofi_set_error("%s: the tensor '%.200s' is said to be in %s, which does not have it",
                       c->index_path, e->tensor, e->file);
        return LOFI_CORRUPT;
    }
    if (index->count == c->count) return LOFI_OK;
    uint64_t i = 0;
    while (i + 1 < c->count && lofi__index_has(index, c->tensors[i].entry->name))
        i++;
    lofi_set_error("%s: it does not name the tensor '%.200s' of %s", c->index_path,
                   c->tensors[i].entry->name, c->tensors[i].file->path);
    return LOFI_CORRUPT;
}

/* Keeps the metadata of the index: that of an average takes them over. */
static lofi_status keep_metadata(lofi_checkpoint *c, const struct lofi__index *index)
{
    yyjson_val *metadata = yyjson_obj_get(yyjson_doc_get_root(index->doc), "metadata");

    c->index_metadata = yyjson_mut_doc_new(&lofi__json_memory);
    if (c->index_metadata == NULL) return LOFI_NO_MEMORY;
    if (!yyjson_is_obj(metadata)) return LOFI_OK;
    yyjson_mut_val *copy = yyjson_val_mut_copy(c->index_metadata, metadata);
    yyjson_mut_doc_set_root(c->index_metadata, copy);
    return copy != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

/* Also an index may be a pointer, or the page of a server. */
static lofi_status refuse_foreign(const char *path, const char *text, size_t length)
{
    unsigned char head[LOFI__FOREIGN_BYTES];
    const size_t bytes = length < sizeof head ? length : sizeof head;

    if (length == 0 || text[0] == '{' || text[0] == '[') return LOFI_OK;
    memcpy(head, text, bytes);
    return lofi__foreign_refuse(path, head, bytes);
}

static lofi_status open_index(lofi_checkpoint *c)
{
    struct lofi__index index = {0};
    char *text = NULL;
    size_t length = 0;

    lofi_status st = lofi__path_check_inside(c->folder, c->index_path);
    if (st == LOFI_OK) st = lofi__file_read_all(c->index_path, LOFI__HEADER_MAX, &text, &length);
    if (st == LOFI_OK) st = refuse_foreign(c->index_path, text, length);
    if (st == LOFI_OK) st = lofi__index_parse(c->index_path, text, length, &index);
    lofi__mem_destroy(text);
    if (st == LOFI_OK) st = open_shards(c, &index);
    if (st == LOFI_OK) st = list_tensors(c);
    if (st == LOFI_OK) st = check_index(c, &index);
    if (st == LOFI_OK) st = keep_metadata(c, &index);
    lofi__index_clear(&index);
    return st;
}

lofi_status lofi_checkpoint_open(const char *path, lofi_checkpoint **out)
{
    struct lofi__location location = {0};

    if (path == NULL || path[0] == '\0') {
        lofi_set_error("the path of a checkpoint is empty");
        return LOFI_INVALID;
    }
    lofi_checkpoint *c = lofi__mem_create(1, sizeof *c);
    if (c == NULL) return LOFI_NO_MEMORY;
    c->path = lofi__text_create("%s", path);
    lofi_status st = c->path != NULL ? lofi__locate(path, &location) : LOFI_NO_MEMORY;
    c->folder = location.folder;
    c->index_path = location.index;
    if (st == LOFI_OK && c->index_path != NULL) {
        st = open_index(c);
    } else if (st == LOFI_OK) {
        st = open_files(c, &location.file, 1);
        if (st == LOFI_OK) st = list_tensors(c);
    }
    lofi__mem_destroy(location.file);
    if (st == LOFI_OK)
        *out = c;
    else
        lofi_checkpoint_close(c);
    return st;
}

void lofi_checkpoint_close(lofi_checkpoint *checkpoint)
{
    if (checkpoint == NULL) return;
    for (uint64_t i = 0; i < checkpoint->file_count; i++)
        lofi__file_close(&checkpoint->files[i]);
    yyjson_mut_doc_free(checkpoint->index_metadata);
    lofi__mem_destroy(checkpoint->files);
    lofi__mem_destroy(checkpoint->tensors);
    lofi__mem_destroy(checkpoint->by_name);
    lofi__mem_destroy(checkpoint->index_path);
    lofi__mem_destroy(checkpoint->folder);
    lofi__mem_destroy(checkpoint->path);
    lofi__mem_destroy(checkpoint);
}

int64_t lofi_checkpoint_find(const lofi_checkpoint *checkpoint, const char *name)
{
    uint64_t low = 0, high = checkpoint->count;

    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        const uint64_t number = checkpoint->by_name[middle];
        const int order = strcmp(checkpoint->tensors[number].entry->name, name);
        if (order == 0) return (int64_t)number;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

const struct lofi__place *lofi__checkpoint_find(const lofi_checkpoint *checkpoint, const char *name)
{
    const int64_t number = lofi_checkpoint_find(checkpoint, name);
    return number >= 0 ? &checkpoint->tensors[number] : NULL;
}

static void print_shape(const struct lofi__entry *e, char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < e->dims && used + 24 < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%" PRIu64, i > 0 ? ", " : "",
                                 e->shape[i]);
}

lofi_status lofi__place_check_pair(const struct lofi__place *first, const struct lofi__place *other)
{
    const struct lofi__entry *a = first->entry, *b = other->entry;
    char a_text[256], b_text[256];

    if (a->dims != b->dims || memcmp(a->shape, b->shape, (size_t)a->dims * sizeof *a->shape) != 0) {
        print_shape(a, a_text, sizeof a_text);
        print_shape(b, b_text, sizeof b_text);
        lofi_set_error("the tensor '%.200s' has the shape [%s] in %s and [%s] in %s", a->name,
                       a_text, first->file->path, b_text, other->file->path);
        return LOFI_INVALID;
    }
    const int are_floats = a->kind->class == LOFI__KIND_FLOAT &&
                           b->kind->class == LOFI__KIND_FLOAT && a->kind->lanes == b->kind->lanes;
    if (a->kind == b->kind || are_floats) return LOFI_OK;
    lofi_set_error("the tensor '%.200s' is %s in %s and %s in %s", a->name, a->kind->name,
                   first->file->path, b->kind->name, other->file->path);
    return LOFI_INVALID;
}

uint64_t lofi__place_begin(const struct lofi__place *place)
{
    return place->file->data + place->entry->begin;
}

uint64_t lofi_checkpoint_count(const lofi_checkpoint *checkpoint)
{
    return checkpoint->count;
}

const struct lofi__place *lofi__checkpoint_place(const lofi_checkpoint *checkpoint, uint64_t index)
{
    if (index < checkpoint->count) return &checkpoint->tensors[index];
    lofi_set_error("%s: tensor %" PRIu64 " of %" PRIu64, checkpoint->path, index,
                   checkpoint->count);
    return NULL;
}

lofi_status lofi_checkpoint_get(const lofi_checkpoint *checkpoint, uint64_t index,
                                lofi_tensor *tensor)
{
    const struct lofi__place *place = lofi__checkpoint_place(checkpoint, index);
    if (place == NULL) return LOFI_INVALID;
    *tensor = (lofi_tensor){.name = place->entry->name,
                            .dtype = place->entry->kind->name,
                            .file = place->file->path,
                            .shape = place->entry->shape,
                            .dims = place->entry->dims,
                            .count = place->entry->count,
                            .bytes = place->entry->bytes};
    return LOFI_OK;
}

lofi_status lofi_checkpoint_read(const lofi_checkpoint *checkpoint, uint64_t index, uint64_t offset,
                                 void *out, size_t bytes)
{
    const struct lofi__place *place = lofi__checkpoint_place(checkpoint, index);
    if (place == NULL) return LOFI_INVALID;
    if (offset > place->entry->bytes || bytes > place->entry->bytes - offset) {
        lofi_set_error("%s: the tensor '%.200s' has %" PRIu64 " bytes: %zu can't be read at "
                       "%" PRIu64,
                       checkpoint->path, place->entry->name, place->entry->bytes, bytes, offset);
        return LOFI_INVALID;
    }
    return lofi__file_read(place->file, lofi__place_begin(place) + offset, out, bytes);
}

uint64_t lofi_checkpoint_file_count(const lofi_checkpoint *checkpoint)
{
    return checkpoint->file_count;
}

const char *lofi_checkpoint_metadata(const lofi_checkpoint *checkpoint, uint64_t index,
                                     const char **value)
{
    for (uint64_t f = 0; f < checkpoint->file_count; f++) {
        const struct lofi__header *h = &checkpoint->files[f].header;
        if (index < h->metadata_count) {
            *value = h->metadata[index].value;
            return h->metadata[index].key;
        }
        index -= h->metadata_count;
    }
    return NULL;
}
