/* SPDX-License-Identifier: MIT */
/* Memory: every allocation of the library goes through here. */
#ifndef LOFI_CORE_MEM_H
#define LOFI_CORE_MEM_H

#include <stddef.h>

/* `count` zeroed elements of `each` bytes. NULL, with the last error set, if that overflows or
 * there is no memory; the caller returns LOFI_NO_MEMORY. */
void *lofi__mem_create(size_t count, size_t each);
void lofi__mem_destroy(void *memory);

/* The seam to the system, in mem_system.c. A test that fails the n-th allocation links its own
 * pair in place of that file; a table of hooks would be a global that only tests ever set. */
void *lofi__mem_system_create(size_t bytes);
void lofi__mem_system_destroy(void *memory);

#endif /* LOFI_CORE_MEM_H */
