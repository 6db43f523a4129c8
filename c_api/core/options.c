/* SPDX-License-Identifier: MIT */
#include "core/options.h"

#include <string.h>

lofi_status lofi__options_read(void *full, size_t bytes, const void *given, const char *init)
{
    size_t size = 0;

    if (given != NULL) memcpy(&size, given, sizeof size);
    if (size < sizeof size || size > bytes) {
        lofi_set_error("options with size %zu: begin with %s", size, init);
        return size > bytes ? LOFI_ABI : LOFI_INVALID;
    }
    memcpy(full, given, size);
    memcpy(full, &bytes, sizeof bytes);
    return LOFI_OK;
}
