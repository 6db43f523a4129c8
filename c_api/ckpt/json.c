/* SPDX-License-Identifier: MIT */
#include "ckpt/json.h"
#include "core/mem.h"

#include <stdlib.h>
#include <string.h>

static void *json_malloc(void *ctx, size_t bytes)
{
    (void)ctx;
    return lofi__mem_create(bytes, 1);
}

static void *json_realloc(void *ctx, void *old, size_t old_bytes, size_t bytes)
{
    (void)ctx;
    void *memory = lofi__mem_create(bytes, 1);
    if (memory == NULL) return NULL;
    memcpy(memory, old, old_bytes < bytes ? old_bytes : bytes);
    lofi__mem_destroy(old);
    return memory;
}

static void json_free(void *ctx, void *memory)
{
    (void)ctx;
    lofi__mem_destroy(memory);
}

const yyjson_alc lofi__json_memory = {json_malloc, json_realloc, json_free, NULL};

lofi_status lofi__json_read(const char *file, const char *text, size_t length,
                            yyjson_read_flag flags, yyjson_doc **out)
{
    yyjson_read_err error;
    char *copy;

    if (length == 0) {
        lofi_set_error("%s: where JSON should be there is nothing", file);
        return LOFI_CORRUPT;
    }
    memcpy(&copy, &text, sizeof copy); /* yyjson's own text is not const, for the flag INSITU */
    yyjson_doc *doc = yyjson_read_opts(copy, length, flags, &lofi__json_memory, &error);
    if (doc == NULL && error.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION) return LOFI_NO_MEMORY;
    if (doc == NULL) {
        lofi_set_error("%s: the JSON is not valid at byte %zu of it: %s", file, error.pos,
                       error.msg);
        return LOFI_CORRUPT;
    }
    if (!yyjson_is_obj(yyjson_doc_get_root(doc))) {
        lofi_set_error("%s: the JSON is not an object", file);
        yyjson_doc_free(doc);
        return LOFI_CORRUPT;
    }
    *out = doc;
    return LOFI_OK;
}

lofi_status lofi__json_check_depth(const char *file, const char *text, size_t length, int most)
{
    int depth = 0, is_in_text = 0;

    for (size_t i = 0; i < length && depth <= most; i++) {
        if (is_in_text && text[i] == '\\')
            i++;
        else if (text[i] == '"')
            is_in_text = !is_in_text;
        else if (!is_in_text && (text[i] == '[' || text[i] == '{'))
            depth++;
        else if (!is_in_text && (text[i] == ']' || text[i] == '}'))
            depth--;
    }
    if (depth <= most) return LOFI_OK;
    lofi_set_error("%s: the JSON is deeper than the %d levels that are allowed", file, most);
    return LOFI_CORRUPT;
}

const char *lofi__json_text(yyjson_val *value)
{
    const char *text = yyjson_get_str(value);
    return text != NULL && strlen(text) == yyjson_get_len(value) ? text : NULL;
}

char *lofi__json_write(yyjson_val *value)
{
    return yyjson_val_write_opts(value, YYJSON_WRITE_ALLOW_INF_AND_NAN, &lofi__json_memory, NULL,
                                 NULL);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int lofi__json_find_double(const char **names, uint64_t count, const char **name)
{
    if (count > 1) qsort(names, count, sizeof *names, compare);
    for (uint64_t i = 1; i < count; i++) {
        if (strcmp(names[i - 1], names[i]) != 0) continue;
        *name = names[i];
        return 1;
    }
    return 0;
}
