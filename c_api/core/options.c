/* SPDX-License-Identifier: MIT */
#include "core/options.h"

#include <string.h>

static lofi_status read_size(const void *given, size_t bytes, const char *init, size_t *size)
{
    if (given == NULL) {
        lofi_set_error("a struct is missing that %s begins", init);
        return LOFI_INVALID;
    }
    memcpy(size, given, sizeof *size);
    if (*size < sizeof *size) {
        lofi_set_error(
            "a struct says that it is of %zu bytes: begin it with %s, which sets its size", *size,
            init);
        return LOFI_INVALID;
    }
    if (*size > bytes) {
        lofi_set_error(
            "a struct is of %zu bytes, of which this library knows %zu (%s): the program "
            "was compiled with the lofi.h of a newer release; install that release's "
            "library",
            *size, bytes, init);
        return LOFI_ABI;
    }
    return LOFI_OK;
}

lofi_status lofi__options_read(void *full, size_t bytes, const void *given, const char *init)
{
    size_t size = 0;

    lofi_status st = read_size(given, bytes, init, &size);
    if (st != LOFI_OK) return st;
    memcpy(full, given, size);
    memcpy(full, &bytes, sizeof bytes);
    return LOFI_OK;
}

lofi_status lofi__options_write(void *given, const void *full, size_t bytes, const char *init)
{
    size_t size = 0;

    lofi_status st = read_size(given, bytes, init, &size);
    if (st != LOFI_OK) return st;
    memcpy((char *)given + sizeof size, (const char *)full + sizeof size, size - sizeof size);
    return LOFI_OK;
}
