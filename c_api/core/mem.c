/* SPDX-License-Identifier: MIT */
/* Overflow-checked, zeroed memory, with the sentence for when there is none. */
#include "core/mem.h"
#include "lofi.h"

#include <stdint.h>
#include <string.h>

void *lofi__mem_create(size_t count, size_t each)
{
    void *memory = NULL;
    size_t bytes = 0;

    if (each == 0 || count <= SIZE_MAX / each) {
        bytes = count * each;
        memory = lofi__mem_system_create(bytes > 0 ? bytes : 1);
    }
    if (memory == NULL) {
        lofi_set_error("out of memory: %zu elements of %zu bytes were asked for", count, each);
        return NULL;
    }
    return memset(memory, 0, bytes);
}

void lofi__mem_destroy(void *memory)
{
    lofi__mem_system_destroy(memory);
}
