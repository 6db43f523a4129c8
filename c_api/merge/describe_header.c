/* SPDX-License-Identifier: MIT */
/*
 * The header of one file of the output. The metadata are written by yyjson; the tensors, of which
 * there may be very many, without the tree that it would build for them.
 */
#include "ckpt/text.h"
#include "core/mem.h"
#include "merge/describe.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct found {
    const struct lofi__pair *pair;
    uint64_t order;
};

static int compare_order(const void *left, const void *right)
{
    const struct found *a = left, *b = right;
    return a->order < b->order ? -1 : a->order > b->order;
}

static int compare_keys(const void *left, const void *right)
{
    const struct found *a = left, *b = right;
    const int order = strcmp(a->pair->key, b->pair->key);
    return order != 0 ? order : compare_order(left, right);
}

/* Keeps the first entry of each key. The list is sorted for that, since a stranger's file may have
 * very many. */
static uint64_t remove_doubles(struct found *list, uint64_t count)
{
    uint64_t kept = 0;

    if (count > 1) qsort(list, count, sizeof *list, compare_keys);
    for (uint64_t i = 0; i < count; i++)
        if (kept == 0 || strcmp(list[kept - 1].pair->key, list[i].pair->key) != 0)
            list[kept++] = list[i];
    if (kept > 1) qsort(list, kept, sizeof *list, compare_order);
    return kept;
}

/* Adds the metadata of some files of the first input, without what an earlier average put there;
 * and a format, without which some releases of transformers refuse the file. */
static int add_entries(const lofi_checkpoint *from, uint64_t first, uint64_t end,
                       yyjson_mut_doc *doc, yyjson_mut_val *metadata)
{
    uint64_t count = 0;
    int has_format = 0, is_done = 1;

    for (uint64_t f = first; f < end; f++)
        count += from->files[f].header.metadata_count;
    struct found *list = lofi__mem_create(count, sizeof *list);
    if (list == NULL) return 0;
    count = 0;
    for (uint64_t f = first; f < end; f++) {
        const struct lofi__header *h = &from->files[f].header;
        for (uint64_t m = 0; m < h->metadata_count; m++)
            if (strncmp(h->metadata[m].key, LOFI__OURS, strlen(LOFI__OURS)) != 0) {
                list[count] = (struct found){&h->metadata[m], count};
                count++;
            }
    }
    count = remove_doubles(list, count);
    for (uint64_t i = 0; i < count && is_done; i++) {
        const struct lofi__pair *pair = list[i].pair;
        has_format |= strcmp(pair->key, "format") == 0;
        is_done = yyjson_mut_obj_add_str(doc, metadata, pair->key, pair->value);
    }
    lofi__mem_destroy(list);
    return is_done && (has_format || yyjson_mut_obj_add_str(doc, metadata, "format", "pt"));
}

/* Takes the metadata of the input's file, or of all its files if the output is cut anew. */
static int add_metadata(const struct lofi__plan *plan, uint64_t number, yyjson_mut_val *origin,
                        yyjson_mut_doc *doc, yyjson_mut_val *metadata)
{
    const lofi_checkpoint *first = plan->sources[0];
    const int is_cut_anew = plan->options.shard_bytes > 0;
    const uint64_t begin = is_cut_anew ? 0 : number;
    const uint64_t end = is_cut_anew ? first->file_count : number + 1;
    yyjson_mut_val *key, *value;
    size_t i, count;

    if (!add_entries(first, begin, end, doc, metadata)) return 0;
    yyjson_mut_obj_foreach(origin, i, count, key, value)
    {
        yyjson_mut_val *copy = yyjson_mut_val_mut_copy(doc, value);
        if (!yyjson_mut_obj_add(metadata, yyjson_mut_val_mut_copy(doc, key), copy)) return 0;
    }
    return 1;
}

/* Writes the metadata as JSON. NULL: there is no memory. */
static char *write_metadata(const struct lofi__plan *plan, uint64_t number, yyjson_mut_val *origin)
{
    char *text = NULL;
    yyjson_mut_doc *doc = yyjson_mut_doc_new(&lofi__json_memory);
    yyjson_mut_val *metadata = doc != NULL ? yyjson_mut_obj(doc) : NULL;

    if (metadata != NULL && add_metadata(plan, number, origin, doc, metadata))
        text = yyjson_mut_val_write_opts(metadata, 0, &lofi__json_memory, NULL, NULL);
    yyjson_mut_doc_free(doc);
    return text;
}

static void put(struct lofi__text *out, const char *text)
{
    lofi__text_put(out, text, strlen(text));
}

static void put_number(struct lofi__text *out, const char *before, uint64_t number)
{
    char digits[24];

    put(out, before);
    lofi__text_put(out, digits, (size_t)snprintf(digits, sizeof digits, "%" PRIu64, number));
}

/* It is of UTF-8, since it was read from JSON. */
static void put_name(struct lofi__text *out, const char *name)
{
    char escape[8];

    put(out, "\"");
    for (const char *c = name; *c != '\0'; c++) {
        const unsigned char byte = (unsigned char)*c;
        if (byte == '"' || byte == '\\') put(out, "\\");
        if (byte >= ' ')
            lofi__text_put(out, c, 1);
        else
            lofi__text_put(out, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", byte));
    }
    put(out, "\"");
}

static void put_job(struct lofi__text *out, const struct lofi__job *job)
{
    const struct lofi__entry *e = job->places[0]->entry;
    const uint64_t *shape = job->shape != NULL ? job->shape : e->shape;

    put(out, ",");
    put_name(out, e->name);
    put(out, ":{\"dtype\":\"");
    put(out, job->kind->name);
    put(out, "\",\"shape\":[");
    for (int i = 0; i < e->dims; i++)
        put_number(out, i > 0 ? "," : "", shape[i]);
    put_number(out, "],\"data_offsets\":[", job->begin);
    put_number(out, ",", job->begin + job->bytes);
    put(out, "]}");
}

/* Writes the header's JSON, and spaces up to a multiple of eight bytes. */
static void put_header(struct lofi__text *out, const struct lofi__plan *plan,
                       const struct lofi__output *output, const char *metadata)
{
    put(out, "{\"__metadata__\":");
    put(out, metadata);
    for (uint64_t i = 0; i < output->job_count; i++)
        put_job(out, &plan->jobs[output->first_job + i]);
    put(out, "}");
    while (out->length % 8 != 0)
        put(out, " ");
}

static lofi_status write_header(const struct lofi__plan *plan, struct lofi__output *output,
                                const char *metadata)
{
    struct lofi__text out = {0};

    put_header(&out, plan, output, metadata);
    const size_t length = out.length;
    if (length > LOFI__HEADER_MAX) {
        lofi_set_error("the header of %s would be longer than the format allows", output->path);
        return LOFI_INVALID;
    }
    output->header = lofi__mem_create(8 + length, 1);
    if (output->header == NULL) return LOFI_NO_MEMORY;
    for (int i = 0; i < 8; i++)
        output->header[i] = (char)((uint64_t)length >> 8 * i & 0xff);
    out = (struct lofi__text){.to = output->header + 8};
    put_header(&out, plan, output, metadata);
    output->header_bytes = 8 + length;
    return LOFI_OK;
}

lofi_status lofi__describe_header(const struct lofi__plan *plan, uint64_t number,
                                  yyjson_mut_val *origin)
{
    char *metadata = write_metadata(plan, number, origin);
    if (metadata == NULL) return LOFI_NO_MEMORY;
    lofi_status st = write_header(plan, &plan->outputs[number], metadata);
    lofi__mem_destroy(metadata);
    return st;
}
