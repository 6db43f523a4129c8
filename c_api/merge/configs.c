/* SPDX-License-Identifier: MIT */
/*
 * Configs and tokenizers of the sources, compared: weights of the same shapes may belong to models
 * that compute other things (rope_theta, the order of a vocabulary).
 *
 * A key that is not known to be without effect on the output counts. A list of those that have an
 * effect would never be complete.
 */
#define _GNU_SOURCE
#include "ckpt/json.h"
#include "ckpt/path.h"
#include "ckpt/text.h"
#include "core/mem.h"
#include "merge/check.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MOST_BYTES ((uint64_t)64 << 20)
/* Beyond these an object is compared as one value: to find a key takes as long as there are keys. */
#define MOST_DEPTH 16
#define MOST_KEYS 4096

/* Keys that say where a model came from, how it is run, trained or sampled from. */
static const char *const idle_keys[] = {
    "_name_or_path",
    "_commit_hash",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "architectures",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_return_dict",
    "torchscript",
    "finetuning_task",
    "problem_type",
    "gradient_checkpointing",
    "attn_implementation",
    "max_length",
    "min_length",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "num_beams",
    "early_stopping",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "task_specific_params",
    "initializer_range",
    "initializer_factor",
    "auto_map",
    "truncation",
    "padding",
};

struct comparison {
    const char *const *paths; /* of the two files */
    char differ[512], idle[512];
};

static int is_idle(const char *key)
{
    return LOFI__HAS(idle_keys, key) || strstr(key, "dropout") != NULL ||
           strstr(key, "_attn_implementation") != NULL || strstr(key, "drop_path") != NULL ||
           strstr(key, "layerdrop") != NULL;
}

static int is_same(yyjson_val *a, yyjson_val *b)
{
    char *first = lofi__json_write(a), *second = lofi__json_write(b);
    const int same = first != NULL && second != NULL && strcmp(first, second) == 0;

    lofi__mem_destroy(first);
    lofi__mem_destroy(second);
    return same;
}

static void print_value(yyjson_val *value, char *text, size_t bytes)
{
    char *written = value != NULL ? lofi__json_write(value) : NULL;
    snprintf(text, bytes, "%.48s", value == NULL ? "nothing" : written != NULL ? written : "?");
    lofi__mem_destroy(written);
}

static void note(struct comparison *c, const char *prefix, const char *key, yyjson_val *a,
                 yyjson_val *b)
{
    char *to = is_idle(key) ? c->idle : c->differ;
    const size_t used = strlen(to), left = sizeof c->differ - used;
    char first[64], second[64];

    if (left < 192) return; /* enough is named */
    print_value(a, first, sizeof first);
    print_value(b, second, sizeof second);
    snprintf(to + used, left, "%s%.32s%.48s (%s and %s)", used > 0 ? ", " : "", prefix, key, first,
             second);
}

static void compare_objects(struct comparison *c, const char *prefix, yyjson_val *a, yyjson_val *b,
                            int depth);

static void compare(struct comparison *c, const char *prefix, const char *key, yyjson_val *a,
                    yyjson_val *b, int depth)
{
    char inner[48];

    if (a != NULL && b != NULL && is_same(a, b)) return;
    const int can_descend = yyjson_is_obj(a) && yyjson_is_obj(b) && depth < MOST_DEPTH &&
                            yyjson_obj_size(a) <= MOST_KEYS && yyjson_obj_size(b) <= MOST_KEYS;
    if (!can_descend) {
        note(c, prefix, key, a, b);
        return;
    }
    snprintf(inner, sizeof inner, "%.20s%.20s.", prefix, key);
    compare_objects(c, is_idle(key) ? "" : inner, a, b, depth + 1);
}

static void compare_objects(struct comparison *c, const char *prefix, yyjson_val *a, yyjson_val *b,
                            int depth)
{
    yyjson_val *key, *value;
    size_t i, count;

    yyjson_obj_foreach(a, i, count, key, value)
    {
        compare(c, prefix, yyjson_get_str(key), value, yyjson_obj_get(b, yyjson_get_str(key)),
                depth);
    }
    yyjson_obj_foreach(b, i, count, key, value)
    {
        if (yyjson_obj_get(a, yyjson_get_str(key)) == NULL)
            note(c, prefix, yyjson_get_str(key), NULL, value);
    }
}

/* Compares two texts of JSON. 0: one is none, and nothing can be said. */
static int compare_texts(struct comparison *c, char *const *texts, const size_t *bytes)
{
    yyjson_doc *docs[2] = {NULL, NULL};
    int is_read = 1;

    for (int i = 0; i < 2; i++)
        is_read &= lofi__json_read(c->paths[i], texts[i], bytes[i], YYJSON_READ_ALLOW_INF_AND_NAN,
                                   &docs[i]) == LOFI_OK;
    if (is_read) compare(c, "", "", yyjson_doc_get_root(docs[0]), yyjson_doc_get_root(docs[1]), 0);
    yyjson_doc_free(docs[0]);
    yyjson_doc_free(docs[1]);
    return is_read;
}

static lofi_status refuse(const struct comparison *c, const char *what)
{
    lofi_set_error(
        "%s and %s differ%s%s: models that compute other things with weights of the same "
        "shapes. Give inputs of one model; force_config (--force-config) averages them "
        "all the same, with the first's files",
        c->paths[0], c->paths[1], what[0] != '\0' ? " in " : "", what);
    return LOFI_INVALID;
}

static lofi_status compare_files(struct comparison *c, int is_json, char *const *texts,
                                 const size_t *bytes)
{
    if (bytes[0] == bytes[1] && memcmp(texts[0], texts[1], bytes[0]) == 0) return LOFI_OK;
    if (!is_json || !compare_texts(c, texts, bytes)) return refuse(c, "");
    if (c->differ[0] != '\0') return refuse(c, c->differ);
    if (c->idle[0] != '\0')
        lofi_log(LOFI_LOG_INFO, "%s and %s differ in %s: the first's is taken", c->paths[0],
                 c->paths[1], c->idle);
    return LOFI_OK;
}

/* One file of one source. */
struct side_file {
    char *text, *path; /* NULL: there is none */
    size_t bytes;
};

static lofi_status read_file(const lofi_checkpoint *source, const char *name,
                             struct side_file *file)
{
    *file = (struct side_file){0};
    lofi_status st = lofi__side_file_read(source, name, &file->text, &file->bytes);
    if (st != LOFI_OK || file->text == NULL) return st;
    file->path = lofi__path_join(source->folder, name);
    return file->path != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

static void clear_file(struct side_file *file)
{
    lofi__mem_destroy(file->text);
    lofi__mem_destroy(file->path);
}

static lofi_status compare_with(const struct side_file *first, const lofi_checkpoint *source,
                                const char *name)
{
    struct side_file other;
    lofi_status st = read_file(source, name, &other);

    if (st == LOFI_OK && other.text != NULL) {
        const char *const paths[2] = {first->path, other.path};
        char *const texts[2] = {first->text, other.text};
        const size_t bytes[2] = {first->bytes, other.bytes};
        struct comparison c = {.paths = paths};
        st = compare_files(&c, lofi__path_ends_with(name, ".json"), texts, bytes);
    }
    clear_file(&other);
    return st;
}

static lofi_status compare_named(const struct lofi__plan *plan, const char *name)
{
    struct side_file first;
    lofi_status st = read_file(plan->sources[0], name, &first);

    for (int s = 1; s < plan->source_count && st == LOFI_OK && first.text != NULL; s++)
        st = compare_with(&first, plan->sources[s], name);
    clear_file(&first);
    return st;
}

lofi_status lofi__configs_check(const struct lofi__plan *plan)
{
    static const char *const names[] = {
        "config.json",       "tokenizer.json", "tokenizer.model",         "vocab.json",
        "vocab.txt",         "merges.txt",     "sentencepiece.bpe.model", "spiece.model",
        "added_tokens.json",
    };
    lofi_status st = LOFI_OK;

    if (plan->options.force_config) return LOFI_OK;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && st == LOFI_OK; i++)
        st = compare_named(plan, names[i]);
    return st;
}

lofi_status lofi__side_file_read(const lofi_checkpoint *source, const char *name, char **text,
                                 size_t *bytes)
{
    *text = NULL;
    if (source->folder == NULL) return LOFI_OK;
    char *path = lofi__path_join(source->folder, name);
    if (path == NULL) return LOFI_NO_MEMORY;
    lofi_status st = LOFI_OK;
    if (access(path, R_OK) == 0) st = lofi__file_read_all(path, MOST_BYTES, text, bytes);
    lofi__mem_destroy(path);
    return st == LOFI_NO_MEMORY ? st : LOFI_OK;
}
