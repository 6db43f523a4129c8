/* SPDX-License-Identifier: MIT */
/* The index of a checkpoint in shards: which file has which tensor. */
#ifndef LOFI_CKPT_INDEX_H
#define LOFI_CKPT_INDEX_H

#include "ckpt/json.h"

struct lofi__index {
    yyjson_doc *doc;
    const char **files;   /* each once, ascending */
    const char **tensors; /* ascending */
    uint64_t file_count;
    struct lofi__index_entry {
        const char *tensor;
        const char *file;
    } * entries; /* in the order of the index */
    uint64_t count;
};

/* Reads the JSON of an index. Pure; `file` is for sentences. LOFI_CORRUPT for a file name that is
 * not a plain name in the same folder. Clear the index also after an error; one of zeros may be
 * cleared, too. */
lofi_status lofi__index_parse(const char *file, const char *text, size_t length,
                              struct lofi__index *index);
int lofi__index_has(const struct lofi__index *index, const char *tensor);
void lofi__index_clear(struct lofi__index *index);

#endif /* LOFI_CKPT_INDEX_H */
