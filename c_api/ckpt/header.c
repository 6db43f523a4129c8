/* SPDX-License-Identifier: MIT */
/*
 * The parser of safetensors headers, written for files of strangers.
 *
 * JSON is read by yyjson, which checks UTF-8 and does not recurse; here the meaning is checked.
 * Each member has exactly the three keys of the format: a fourth would be carried by no reader,
 * and a nested one is how deep JSON comes in. All sums and products are checked for overflow.
 */
#include "ckpt/header.h"
#include "core/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const char *file;
    uint64_t data_bytes;
    struct lofi__header *header;
    uint64_t *free_dims;
};

static lofi_status refuse(const struct reader *r, const char *tensor, const char *what)
{
    lofi_set_error("%s: the tensor '%.200s' %s", r->file, tensor, what);
    return LOFI_CORRUPT;
}

static lofi_status read_kind(const struct reader *r, struct lofi__entry *e, yyjson_val *value)
{
    const char *name = lofi__json_text(value);
    if (name == NULL) return refuse(r, e->name, "has a dtype that is not a word");
    e->kind = lofi__kind_of(name, strlen(name));
    if (e->kind != NULL) return LOFI_OK;
    lofi_set_error("%s: the tensor '%.200s' has the dtype '%.64s', which the format does not know",
                   r->file, e->name, name);
    return LOFI_CORRUPT;
}

static lofi_status read_shape(struct reader *r, struct lofi__entry *e, yyjson_val *value)
{
    size_t i, dims;
    yyjson_val *dim;

    if (!yyjson_is_arr(value)) return refuse(r, e->name, "has a shape that is not a list");
    e->shape = r->free_dims;
    e->dims = (int)yyjson_arr_size(value); /* a header has fewer bytes than INT_MAX */
    e->count = 1;
    yyjson_arr_foreach(value, i, dims, dim)
    {
        if (!yyjson_is_uint(dim))
            return refuse(r, e->name, "has a shape that is not of whole numbers from 0 on");
        *r->free_dims++ = yyjson_get_uint(dim);
        if (__builtin_mul_overflow(e->count, yyjson_get_uint(dim), &e->count))
            return refuse(r, e->name, "has a shape whose product overflows");
    }
    return LOFI_OK;
}

static lofi_status read_offsets(const struct reader *r, struct lofi__entry *e, yyjson_val *value)
{
    yyjson_val *first = yyjson_arr_get(value, 0), *second = yyjson_arr_get(value, 1);

    if (yyjson_arr_size(value) != 2 || !yyjson_is_uint(first) || !yyjson_is_uint(second))
        return refuse(r, e->name, "has data_offsets that are not two whole numbers");
    const uint64_t begin = yyjson_get_uint(first), end = yyjson_get_uint(second);
    if (begin > end) return refuse(r, e->name, "has data_offsets that end before they begin");
    if (end > r->data_bytes) {
        lofi_set_error("%s: the tensor '%.200s' ends at byte %" PRIu64 " of the data, which has "
                       "%" PRIu64 " bytes: the file is cut short, or damaged",
                       r->file, e->name, end, r->data_bytes);
        return LOFI_CORRUPT;
    }
    e->begin = begin;
    e->bytes = end - begin;
    return LOFI_OK;
}

static lofi_status check_bytes(const struct reader *r, const struct lofi__entry *e)
{
    uint64_t bits;
    if (__builtin_mul_overflow(e->count, e->kind->bits, &bits))
        return refuse(r, e->name, "has a shape whose size in bytes overflows");
    if (bits % 8 == 0 && bits / 8 == e->bytes) return LOFI_OK;
    lofi_set_error("%s: the tensor '%.200s' has %" PRIu64 " bytes of data, and its shape and dtype "
                   "take %" PRIu64 " bits",
                   r->file, e->name, e->bytes, bits);
    return LOFI_CORRUPT;
}

static lofi_status read_entry(struct reader *r, struct lofi__entry *e, yyjson_val *value)
{
    yyjson_val *dtype = yyjson_obj_get(value, "dtype");
    yyjson_val *shape = yyjson_obj_get(value, "shape");
    yyjson_val *offsets = yyjson_obj_get(value, "data_offsets");

    if (yyjson_obj_size(value) != 3 || dtype == NULL || shape == NULL || offsets == NULL)
        return refuse(r, e->name, "is not described by dtype, shape and data_offsets");
    lofi_status st = read_kind(r, e, dtype);
    if (st == LOFI_OK) st = read_shape(r, e, shape);
    if (st == LOFI_OK) st = read_offsets(r, e, offsets);
    if (st == LOFI_OK) st = check_bytes(r, e);
    return st;
}

static lofi_status read_metadata(const struct reader *r, yyjson_val *object)
{
    struct lofi__header *h = r->header;
    yyjson_val *key, *value;
    size_t i, count;

    /* The safetensors library takes null for none. */
    if (!yyjson_is_obj(object) && !yyjson_is_null(object)) {
        lofi_set_error("%s: __metadata__ is not an object", r->file);
        return LOFI_CORRUPT;
    }
    h->metadata = lofi__mem_create(yyjson_obj_size(object), sizeof *h->metadata);
    if (h->metadata == NULL) return LOFI_NO_MEMORY;
    yyjson_obj_foreach(object, i, count, key, value)
    {
        struct lofi__pair *pair = &h->metadata[i];
        pair->key = lofi__json_text(key);
        pair->value = lofi__json_text(value);
        if (pair->key == NULL || pair->value == NULL) {
            lofi_set_error("%s: __metadata__ holds something other than text", r->file);
            return LOFI_CORRUPT;
        }
        h->metadata_count++;
    }
    return LOFI_OK;
}

static int compare_places(const void *left, const void *right)
{
    const struct lofi__entry *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
    return a->order < b->order ? -1 : 1;
}

/* Sorts the tensors as they lie, and checks that they cover the data. */
static lofi_status check_cover(const struct reader *r)
{
    struct lofi__header *h = r->header;
    uint64_t end = 0;

    if (h->count > 1) qsort(h->entries, h->count, sizeof *h->entries, compare_places);
    for (uint64_t i = 0; i < h->count; i++) {
        const struct lofi__entry *e = &h->entries[i];
        if (e->begin < end) return refuse(r, e->name, "overlaps the one before it");
        if (e->begin > end) return refuse(r, e->name, "leaves a gap before it");
        end += e->bytes;
    }
    if (end == r->data_bytes) return LOFI_OK;
    lofi_set_error("%s: the tensors take %" PRIu64 " bytes, and the file has %" PRIu64
                   " behind its header",
                   r->file, end, r->data_bytes);
    return LOFI_CORRUPT;
}

/* Refuses a name that two tensors have, or two entries of the metadata. */
static lofi_status check_doubles(const struct reader *r)
{
    const struct lofi__header *h = r->header;
    const uint64_t most = h->count > h->metadata_count ? h->count : h->metadata_count;
    const char **names = lofi__mem_create(most, sizeof *names);
    const char *name = NULL;

    if (names == NULL) return LOFI_NO_MEMORY;
    for (uint64_t i = 0; i < h->count; i++)
        names[i] = h->entries[i].name;
    int is_double = lofi__json_find_double(names, h->count, &name);
    for (uint64_t i = 0; i < h->metadata_count && !is_double; i++)
        names[i] = h->metadata[i].key;
    if (!is_double) is_double = lofi__json_find_double(names, h->metadata_count, &name);
    lofi__mem_destroy(names);
    if (!is_double) return LOFI_OK;
    lofi_set_error("%s: the header has the key '%.200s' twice", r->file, name);
    return LOFI_CORRUPT;
}

static lofi_status create_lists(struct reader *r, yyjson_val *root)
{
    struct lofi__header *h = r->header;
    yyjson_val *key, *value;
    size_t i, count, dims = 0;

    yyjson_obj_foreach(root, i, count, key, value)
    {
        dims += yyjson_arr_size(yyjson_obj_get(value, "shape"));
    }
    h->dims = lofi__mem_create(dims, sizeof *h->dims);
    h->entries = lofi__mem_create(yyjson_obj_size(root), sizeof *h->entries);
    r->free_dims = h->dims;
    return h->dims != NULL && h->entries != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

static lofi_status read_member(struct reader *r, yyjson_val *key, yyjson_val *value)
{
    struct lofi__header *h = r->header;
    const char *name = lofi__json_text(key);

    if (name == NULL) {
        lofi_set_error("%s: the name of a tensor has a NUL in it", r->file);
        return LOFI_CORRUPT;
    }
    if (strcmp(name, "__metadata__") == 0) {
        if (h->metadata == NULL) return read_metadata(r, value);
        lofi_set_error("%s: the header has the key '__metadata__' twice", r->file);
        return LOFI_CORRUPT;
    }
    h->entries[h->count] = (struct lofi__entry){.name = name, .order = h->count};
    return read_entry(r, &h->entries[h->count++], value);
}

/* Copies a text to `*end`, and moves that behind it. */
static const char *keep(const char *text, char **end)
{
    const size_t bytes = strlen(text) + 1;
    char *copy = memcpy(*end, text, bytes);
    *end += bytes;
    return copy;
}

/* The document takes several times the memory of the texts, which are all that is needed of it. */
static lofi_status keep_texts(struct lofi__header *h)
{
    size_t bytes = 0;

    for (uint64_t i = 0; i < h->count; i++)
        bytes += strlen(h->entries[i].name) + 1;
    for (uint64_t i = 0; i < h->metadata_count; i++)
        bytes += strlen(h->metadata[i].key) + strlen(h->metadata[i].value) + 2;
    h->text = lofi__mem_create(bytes, 1);
    if (h->text == NULL) return LOFI_NO_MEMORY;
    char *end = h->text;
    for (uint64_t i = 0; i < h->count; i++)
        h->entries[i].name = keep(h->entries[i].name, &end);
    for (uint64_t i = 0; i < h->metadata_count; i++) {
        h->metadata[i].key = keep(h->metadata[i].key, &end);
        h->metadata[i].value = keep(h->metadata[i].value, &end);
    }
    return LOFI_OK;
}

static lofi_status read_root(struct reader *r, yyjson_val *root)
{
    yyjson_val *key, *value;
    size_t i, count;

    lofi_status st = create_lists(r, root);
    if (st != LOFI_OK) return st;
    yyjson_obj_foreach(root, i, count, key, value)
    {
        st = read_member(r, key, value);
        if (st != LOFI_OK) return st;
    }
    st = check_doubles(r);
    if (st == LOFI_OK) st = check_cover(r);
    return st == LOFI_OK ? keep_texts(r->header) : st;
}

lofi_status lofi__header_parse(const char *file, const char *text, size_t length,
                               uint64_t data_bytes, struct lofi__header *header)
{
    struct reader r = {.file = file, .data_bytes = data_bytes, .header = header};
    yyjson_doc *doc = NULL;

    *header = (struct lofi__header){0};
    if (length > 0 && text[0] != '{') {
        lofi_set_error("%s: the header does not begin with '{': this is no safetensors file", file);
        return LOFI_CORRUPT;
    }
    lofi_status st = lofi__json_read(file, text, length, 0, &doc);
    if (st == LOFI_OK) st = read_root(&r, yyjson_doc_get_root(doc));
    yyjson_doc_free(doc);
    return st;
}

void lofi__header_clear(struct lofi__header *header)
{
    lofi__mem_destroy(header->text);
    lofi__mem_destroy(header->dims);
    lofi__mem_destroy(header->entries);
    lofi__mem_destroy(header->metadata);
    *header = (struct lofi__header){0};
}
