/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer over what strangers write: a whole file, as a header and the bytes behind it, and the
 * same bytes as an index. The first byte that fits no header makes no difference to an index, so
 * that one corpus serves both.
 *
 * What is accepted is held to what the rest of lofi relies on.
 */
#include "ckpt/header.h"
#include "ckpt/index.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int is_true)
{
    if (!is_true) abort();
}

static void check_entry(const struct lofi__entry *e, uint64_t begin)
{
    uint64_t count = 1;
    for (int i = 0; i < e->dims; i++)
        check(!__builtin_mul_overflow(count, e->shape[i], &count));
    check(count == e->count && e->begin == begin && e->kind != NULL && e->name != NULL);
    check(e->bytes == count / 8 * e->kind->bits + count % 8 * e->kind->bits / 8);
}

static void run_header(const char *text, size_t length, uint64_t data_bytes)
{
    struct lofi__header h;
    uint64_t end = 0;

    if (lofi__header_parse("file", text, length, data_bytes, &h) == LOFI_OK) {
        for (uint64_t i = 0; i < h.count; i++) {
            check_entry(&h.entries[i], end);
            end += h.entries[i].bytes;
        }
        check(end == data_bytes);
    } else {
        check(lofi_last_error()[0] != '\0');
    }
    lofi__header_clear(&h);
}

static void run_index(const char *text, size_t length)
{
    struct lofi__index index;

    if (lofi__index_parse("index", text, length, &index) == LOFI_OK) {
        check(index.count > 0 && index.file_count > 0 && index.file_count <= index.count);
        for (uint64_t i = 0; i < index.file_count; i++)
            check(strchr(index.files[i], '/') == NULL && index.files[i][0] != '\0');
    }
    lofi__index_clear(&index);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    uint64_t length = 0;

    run_index(text, size);
    if (size < 8) return 0;
    memcpy(&length, data, 8);
    if (length > size - 8) length = size - 8; /* file.c refuses it; here it would be a waste */
    run_header(text + 8, length, size - 8 - length);
    return 0;
}
