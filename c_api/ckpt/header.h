/* SPDX-License-Identifier: MIT */
/* The header of one safetensors file: which tensors it has, and where. */
#ifndef LOFI_CKPT_HEADER_H
#define LOFI_CKPT_HEADER_H

#include "ckpt/json.h"
#include "ckpt/kind.h"

/* The safetensors library has the same limit. */
#define LOFI__HEADER_MAX UINT64_C(100000000)

struct lofi__entry {
    const char *name;
    const struct lofi__kind *kind;
    const uint64_t *shape;
    int dims;
    uint64_t count, bytes; /* elements, bytes */
    uint64_t begin;        /* in the data, that is, behind the header */
    uint64_t order;        /* in the header */
};

struct lofi__pair {
    const char *key, *value;
};

struct lofi__header {
    char *text;                  /* all names, keys and values, one after the other */
    uint64_t *dims;              /* all shapes */
    struct lofi__entry *entries; /* in the order of the data */
    uint64_t count;
    struct lofi__pair *metadata; /* in the order of the header */
    uint64_t metadata_count;
};

/*
 * Reads the JSON of a header, `length` bytes, of a file with `data_bytes` bytes behind it. A pure
 * function; `file` is for sentences. What it accepts, safetensors accepts: names once each, known
 * dtypes, shapes whose product fits their bytes, bytes that cover the data without gap or overlap.
 * LOFI_CORRUPT says what is wrong. Clear the header also after an error; one of zeros may be
 * cleared, too.
 */
lofi_status lofi__header_parse(const char *file, const char *text, size_t length,
                               uint64_t data_bytes, struct lofi__header *header);
void lofi__header_clear(struct lofi__header *header);

#endif /* LOFI_CKPT_HEADER_H */
