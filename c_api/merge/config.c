/* SPDX-License-Identifier: MIT */
/*
 * The words that name the dtype are replaced in the text; all else stays as it is, to the byte.
 * Written anew by a JSON library, Python's Infinity, long numbers and a person's layout would be
 * lost.
 */
#include "merge/config.h"
#include "ckpt/json.h"
#include "ckpt/path.h"
#include "ckpt/text.h"
#include "core/mem.h"

#include <string.h>

struct editor {
    const char *dtype;
    const char *text, *parsed; /* as it was, and as yyjson has changed it: in the same places */
    size_t done;               /* of `text` */
    struct lofi__text out;
};

/* Replaces the text between the quotes at `value`. */
static void replace(struct editor *e, yyjson_val *value)
{
    const size_t begin = (size_t)(yyjson_get_str(value) - e->parsed);

    lofi__text_put(&e->out, e->text + e->done, begin - e->done);
    lofi__text_put(&e->out, e->dtype, strlen(e->dtype));
    e->done = begin;
    while (e->text[e->done] != '"')
        e->done += e->text[e->done] == '\\' ? 2 : 1;
}

/* A part has a config of its own; that of a quantization has dtypes of another meaning. */
static int is_part(const char *key)
{
    return lofi__path_ends_with(key, "_config") && strcmp(key, "quantization_config") != 0;
}

static int is_dtype(const char *key)
{
    return strcmp(key, "dtype") == 0 || strcmp(key, "torch_dtype") == 0;
}

static void edit_part(struct editor *e, yyjson_val *object)
{
    yyjson_val *key, *value;
    size_t i, count;

    yyjson_obj_foreach(object, i, count, key, value)
    {
        if (is_dtype(yyjson_get_str(key)) && yyjson_is_str(value)) replace(e, value);
    }
}

/* Values come as they stand in the text. */
static void edit(struct editor *e, yyjson_val *root, size_t bytes)
{
    yyjson_val *key, *value;
    size_t i, count;

    e->done = e->out.length = 0;
    yyjson_obj_foreach(root, i, count, key, value)
    {
        if (is_part(yyjson_get_str(key))) edit_part(e, value);
        if (is_dtype(yyjson_get_str(key)) && yyjson_is_str(value)) replace(e, value);
    }
    lofi__text_put(&e->out, e->text + e->done, bytes - e->done);
}

lofi_status lofi__config_set_dtype(const char *path, const char *dtype, char **text, size_t *bytes)
{
    const yyjson_read_flag flags = YYJSON_READ_INSITU | YYJSON_READ_ALLOW_INF_AND_NAN;
    yyjson_doc *doc = NULL;
    char *parsed = lofi__mem_create(*bytes + YYJSON_PADDING_SIZE, 1);
    if (parsed == NULL) return LOFI_NO_MEMORY;
    memcpy(parsed, *text, *bytes);
    lofi_status st = lofi__json_read(path, parsed, *bytes, flags, &doc);
    if (st == LOFI_OK) {
        struct editor e = {.dtype = dtype, .text = *text, .parsed = parsed};
        edit(&e, yyjson_doc_get_root(doc), *bytes);
        e.out.to = lofi__mem_create(e.out.length, 1);
        if (e.out.to != NULL) {
            edit(&e, yyjson_doc_get_root(doc), *bytes);
            lofi__mem_destroy(*text);
            *text = e.out.to;
            *bytes = e.out.length;
        } else {
            st = LOFI_NO_MEMORY;
        }
    } else if (st == LOFI_CORRUPT) {
        lofi_log(LOFI_LOG_WARN, "%s (it is copied, and does not name the new dtype)",
                 lofi_last_error());
        st = LOFI_OK;
    }
    yyjson_doc_free(doc);
    lofi__mem_destroy(parsed);
    return st;
}
