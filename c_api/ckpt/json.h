/* SPDX-License-Identifier: MIT */
/* yyjson with the library's memory and sentences. */
#ifndef LOFI_CKPT_JSON_H
#define LOFI_CKPT_JSON_H

#include "lofi.h"

#include <yyjson.h>

/* Reads `length` bytes, whose root has to be an object. `file` is for the sentence. Without
 * YYJSON_READ_INSITU the text is not written to, and the document keeps no reference to it; free it
 * with yyjson_doc_free. LOFI_CORRUPT or LOFI_NO_MEMORY. */
lofi_status lofi__json_read(const char *file, const char *text, size_t length,
                            yyjson_read_flag flags, yyjson_doc **out);

/* LOFI_CORRUPT if arrays and objects lie in each other deeper than `most`: what walks through JSON,
 * or writes it with indents, would cost more than the text. `file` is for the sentence. */
lofi_status lofi__json_check_depth(const char *file, const char *text, size_t length, int most);

/* The memory of the library, for documents that are written. */
extern const yyjson_alc lofi__json_memory;

/* The text of a JSON string; NULL if it is none, or has a NUL inside. */
const char *lofi__json_text(yyjson_val *value);

/* The JSON of a value, to be shown or compared. Free it with lofi__mem_destroy; NULL: there is no
 * memory. */
char *lofi__json_write(yyjson_val *value);

/* A list of "key": value in the order of the keys, to find one that comes twice. Sorting is slower
 * than hashing for friends and no slower for enemies. 0 or 1: `*name` comes twice. */
int lofi__json_find_double(const char **names, uint64_t count, const char **name);

#endif /* LOFI_CKPT_JSON_H */
