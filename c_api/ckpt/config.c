/* SPDX-License-Identifier: MIT */
#include "ckpt/config.h"
#include "ckpt/json.h"
#include "ckpt/path.h"
#include "core/mem.h"

#include <string.h>

static void set_in(yyjson_mut_val *object, const char *dtype)
{
    static const char *const keys[] = {"dtype", "torch_dtype"};

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        yyjson_mut_val *value = yyjson_mut_obj_get(object, keys[i]);
        if (yyjson_mut_is_str(value)) yyjson_mut_set_str(value, dtype);
    }
}

/* That of a quantization has dtypes of its own. */
static int is_part(const char *key)
{
    return lofi__path_ends_with(key, "_config") && strcmp(key, "quantization_config") != 0;
}

lofi_status lofi__config_set_dtype(const char *dtype, char **text, size_t *bytes)
{
    yyjson_doc *old = NULL;
    yyjson_mut_val *key, *value;
    size_t i, count, length = 0;
    char *written = NULL;

    lofi_status st = lofi__json_read("config.json", *text, *bytes, &old);
    if (st == LOFI_CORRUPT) return LOFI_OK;
    if (st != LOFI_OK) return st;
    yyjson_mut_doc *doc = yyjson_doc_mut_copy(old, &lofi__json_memory);
    yyjson_doc_free(old);
    yyjson_mut_val *root = yyjson_mut_doc_get_root(doc);
    set_in(root, dtype);
    yyjson_mut_obj_foreach(root, i, count, key, value)
    {
        if (is_part(yyjson_mut_get_str(key))) set_in(value, dtype);
    }
    if (doc != NULL)
        written = yyjson_mut_write_opts(doc, YYJSON_WRITE_PRETTY_TWO_SPACES, &lofi__json_memory,
                                        &length, NULL);
    yyjson_mut_doc_free(doc);
    if (written == NULL) return LOFI_NO_MEMORY;
    lofi__mem_destroy(*text);
    *text = written;
    *bytes = length;
    return LOFI_OK;
}
