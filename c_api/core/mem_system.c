/* SPDX-License-Identifier: MIT */
/* The system's allocator; alone in its file so that a test can link another one. */
#include "core/mem.h"

#include <stdlib.h>

void *lofi__mem_system_create(size_t bytes)
{
    return malloc(bytes);
}

void lofi__mem_system_destroy(void *memory)
{
    free(memory);
}
