/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer over what strangers write: a whole file, as a header and the bytes behind it, and the
 * same bytes as an index and as a config. The first byte that fits no header makes no difference to
 * these, so that one corpus serves all.
 *
 * What is accepted is held to what the rest of lofi relies on.
 */
#include "ckpt/header.h"
#include "ckpt/index.h"
#include "core/mem.h"
#include "merge/config.h"

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

static char *copy_of(const char *text, size_t length)
{
    char *copy = lofi__mem_create(length, 1);
    check(copy != NULL);
    return memcpy(copy, text, length);
}

static int is_json(const char *text, size_t length)
{
    yyjson_doc *doc = NULL;
    lofi_status st = lofi__json_read("config", text, length, YYJSON_READ_ALLOW_INF_AND_NAN, &doc);
    yyjson_doc_free(doc);
    return st == LOFI_OK;
}

/* JSON stays JSON, and once more changes nothing. */
static void run_config(const char *text, size_t size)
{
    size_t length = size;
    char *once = copy_of(text, size);

    check(lofi__config_set_dtype("config", "bfloat16", &once, &length) == LOFI_OK);
    check(is_json(once, length) || (length == size && memcmp(once, text, size) == 0));
    size_t again = length;
    char *twice = copy_of(once, length);
    check(lofi__config_set_dtype("config", "bfloat16", &twice, &again) == LOFI_OK);
    check(again == length && memcmp(twice, once, length) == 0);
    lofi__mem_destroy(twice);
    lofi__mem_destroy(once);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    uint64_t length = 0;

    lofi_log_set_level(LOFI_LOG_ERROR);
    run_index(text, size);
    run_config(text, size);
    if (size < 8) return 0;
    memcpy(&length, data, 8);
    if (length > size - 8) length = size - 8; /* file.c refuses it; here it would be a waste */
    run_header(text + 8, length, size - 8 - length);
    return 0;
}
