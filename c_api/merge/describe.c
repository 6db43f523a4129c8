/* SPDX-License-Identifier: MIT */
/*
 * The output says of itself where the average came from, and has an index of its shards.
 *
 * The format's metadata are text to text, so lists are JSON inside of text; a reader that knows
 * nothing of lofi carries them along.
 */
#include "merge/describe.h"
#include "ckpt/path.h"
#include "ckpt/sha256.h"
#include "core/mem.h"
#include "merge/statistics.h"
#include "merge/stream.h"

#include <stdio.h>
#include <string.h>

/* Sets a key to the JSON text of `root`, which belongs to a document of its own. */
static int add_json(yyjson_mut_doc *doc, yyjson_mut_val *object, const char *key,
                    yyjson_mut_val *root)
{
    size_t length = 0;
    char *text = yyjson_mut_val_write_opts(root, 0, &lofi__json_memory, &length, NULL);
    const int is_done = text != NULL && yyjson_mut_obj_add_strncpy(doc, object, key, text, length);
    lofi__mem_destroy(text);
    return is_done;
}

/* A path may be of any bytes, and JSON of UTF-8 only: then what is not ASCII becomes '?'. */
static yyjson_mut_val *text_of(yyjson_mut_doc *doc, const char *path)
{
    yyjson_mut_val *text = yyjson_mut_strcpy(doc, path);
    char *written = yyjson_mut_val_write_opts(text, 0, &lofi__json_memory, NULL, NULL);
    const int is_text = written != NULL;

    lofi__mem_destroy(written);
    if (is_text || text == NULL) return text;
    char *ascii = lofi__text_create("%s", path);
    for (char *c = ascii; c != NULL && *c != '\0'; c++)
        if ((*c & 0x80) != 0) *c = '?';
    text = yyjson_mut_strcpy(doc, ascii);
    lofi__mem_destroy(ascii);
    return text;
}

static int add_inputs(const struct lofi__plan *plan, yyjson_mut_doc *doc, yyjson_mut_val *object)
{
    const lofi_average_files_options *o = &plan->options;
    yyjson_mut_val *names = yyjson_mut_arr(doc), *weights = yyjson_mut_arr(doc);

    for (int i = 0; i < o->input_count; i++) {
        if (!yyjson_mut_arr_append(names, text_of(doc, o->inputs[i]))) return 0;
        if (o->weights != NULL && !yyjson_mut_arr_add_real(doc, weights, o->weights[i])) return 0;
        if (o->weights == NULL && !yyjson_mut_arr_add_int(doc, weights, 1)) return 0;
    }
    return add_json(doc, object, LOFI__OURS "inputs", names) &&
           add_json(doc, object, LOFI__OURS "weights", weights) &&
           (!o->raw_weights ||
            yyjson_mut_obj_add_str(doc, object, LOFI__OURS "raw_weights", "true"));
}

static int add_base(const struct lofi__plan *plan, yyjson_mut_doc *doc, yyjson_mut_val *object)
{
    if (plan->options.base == NULL) return 1;
    return yyjson_mut_obj_add_val(doc, object, LOFI__OURS "base",
                                  text_of(doc, plan->options.base)) &&
           add_json(doc, object, LOFI__OURS "alpha", yyjson_mut_real(doc, plan->options.alpha));
}

static int add_scores(const struct lofi__plan *plan, yyjson_mut_doc *doc, yyjson_mut_val *object)
{
    const struct lofi__role *role = plan->role;

    if (role == NULL || !role->is_chosen) return 1;
    if (role->scores != NULL) {
        yyjson_mut_val *list =
            yyjson_mut_arr_with_real(doc, role->scores, (size_t)plan->options.input_count);
        if (!add_json(doc, object, LOFI__OURS "scores", list)) return 0;
    }
    return add_json(doc, object, LOFI__OURS "score", yyjson_mut_real(doc, role->score));
}

static int add_note(const struct lofi__plan *plan, yyjson_mut_doc *doc, yyjson_mut_val *object)
{
    return plan->statistics_count == 0 ||
           yyjson_mut_obj_add_str(doc, object, LOFI__OURS "batchnorm", LOFI__STATISTICS_NOTE);
}

static lofi_status add_digests(const struct lofi__plan *plan, yyjson_mut_doc *doc,
                               yyjson_mut_val *object)
{
    const lofi_average_files_options *o = &plan->options;
    yyjson_mut_val *digests = yyjson_mut_obj(doc);
    char hex[LOFI__SHA256_HEX];

    if (!o->sha256) return LOFI_OK;
    const uint64_t total = lofi__stream_bytes(plan);
    for (int s = 0; s < plan->source_count; s++) {
        const lofi_checkpoint *c = plan->sources[s];
        for (uint64_t f = 0; f < c->file_count; f++) {
            lofi_status st = lofi__sha256_of_file(&c->files[f], o->progress, o->ctx, total, hex);
            if (st != LOFI_OK) return st;
            yyjson_mut_val *key = text_of(doc, c->files[f].path);
            yyjson_mut_val *value = yyjson_mut_strcpy(doc, hex);
            if (!yyjson_mut_obj_put(digests, key, value)) return LOFI_NO_MEMORY;
        }
    }
    return add_json(doc, object, LOFI__OURS "sha256", digests) ? LOFI_OK : LOFI_NO_MEMORY;
}

/* Describes the origin of the average, with the same words in all files. */
static lofi_status describe_origin(const struct lofi__plan *plan, yyjson_mut_doc *doc,
                                   yyjson_mut_val **out)
{
    const char *lora = plan->options.lora;
    yyjson_mut_val *origin = yyjson_mut_obj(doc);
    char version[32];

    snprintf(version, sizeof version, "%d.%d.%d", LOFI_VERSION_MAJOR, LOFI_VERSION_MINOR,
             LOFI_VERSION_PATCH);
    if (origin == NULL || !yyjson_mut_obj_add_strcpy(doc, origin, LOFI__OURS "version", version) ||
        !add_inputs(plan, doc, origin) || !add_base(plan, doc, origin) ||
        (lora != NULL && !yyjson_mut_obj_add_strcpy(doc, origin, LOFI__OURS "lora", lora)) ||
        !add_scores(plan, doc, origin) || !add_note(plan, doc, origin))
        return LOFI_NO_MEMORY;
    *out = origin;
    return add_digests(plan, doc, origin);
}

/* Adds the entries of the first input's index; the total size is counted anew. */
static int add_index_metadata(const struct lofi__plan *plan, yyjson_mut_doc *doc,
                              yyjson_mut_val *root)
{
    yyjson_mut_val *old = yyjson_mut_doc_get_root(plan->sources[0]->index_metadata);
    yyjson_mut_val *metadata = yyjson_mut_obj(doc), *key, *value;
    size_t i, count;
    uint64_t total = 0;

    for (uint64_t f = 0; f < plan->output_count; f++)
        total += plan->outputs[f].data_bytes;
    yyjson_mut_obj_foreach(old, i, count, key, value)
    {
        if (yyjson_mut_equals_str(key, "total_size")) continue;
        yyjson_mut_val *copy = yyjson_mut_val_mut_copy(doc, value);
        if (!yyjson_mut_obj_add(metadata, yyjson_mut_val_mut_copy(doc, key), copy)) return 0;
    }
    return yyjson_mut_obj_add_uint(doc, metadata, "total_size", total) &&
           yyjson_mut_obj_add_val(doc, root, "metadata", metadata);
}

static int add_map(const struct lofi__plan *plan, yyjson_mut_doc *doc, yyjson_mut_val *root)
{
    const lofi_checkpoint *first = plan->sources[0];
    const char **files = lofi__mem_create(plan->job_count, sizeof *files);
    yyjson_mut_val *map = yyjson_mut_obj(doc);
    int is_done = files != NULL && map != NULL;

    for (uint64_t i = 0; i < plan->job_count && is_done; i++)
        files[plan->jobs[i].order] = plan->outputs[plan->jobs[i].file].name;
    for (uint64_t i = 0; i < plan->job_count && is_done; i++) {
        const uint64_t number = first->by_name[i];
        const char *name = first->tensors[number].entry->name;
        is_done = yyjson_mut_obj_add_str(doc, map, name, files[number]);
    }
    /* The document points to the names, not to the list, which may go. */
    lofi__mem_destroy(files);
    return is_done && yyjson_mut_obj_add_val(doc, root, "weight_map", map);
}

static lofi_status describe_index(struct lofi__plan *plan)
{
    const yyjson_write_flag flags = YYJSON_WRITE_PRETTY_TWO_SPACES;
    yyjson_mut_doc *doc = yyjson_mut_doc_new(&lofi__json_memory);
    yyjson_mut_val *root = doc != NULL ? yyjson_mut_obj(doc) : NULL;

    if (root != NULL && add_index_metadata(plan, doc, root) && add_map(plan, doc, root)) {
        yyjson_mut_doc_set_root(doc, root);
        plan->index =
            yyjson_mut_write_opts(doc, flags, &lofi__json_memory, &plan->index_bytes, NULL);
    }
    yyjson_mut_doc_free(doc);
    return plan->index != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

lofi_status lofi__plan_describe(struct lofi__plan *plan)
{
    yyjson_mut_doc *doc = yyjson_mut_doc_new(&lofi__json_memory);
    yyjson_mut_val *origin = NULL;

    lofi_status st = doc != NULL ? describe_origin(plan, doc, &origin) : LOFI_NO_MEMORY;
    for (uint64_t i = 0; i < plan->output_count && st == LOFI_OK; i++)
        st = lofi__describe_header(plan, i, origin);
    yyjson_mut_doc_free(doc);
    if (st == LOFI_OK && plan->index_name != NULL) st = describe_index(plan);
    return st;
}
