/* SPDX-License-Identifier: MIT */
/*
 * Structs that begin with their size, as callers of this and of older releases know them.
 *
 * A field is only ever added at the end, so that an older struct is the beginning of this
 * release's. A longer one comes from a newer lofi.h: what its further fields ask for is unknown
 * here, and to ignore it would do something else than the caller wants.
 */
#ifndef LOFI_CORE_OPTIONS_H
#define LOFI_CORE_OPTIONS_H

#include "lofi/base.h"

/* Reads what the caller gave into `full`, which holds the values of `init` and is of `bytes` bytes:
 * fields that the caller does not know keep these. `init` is the macro's name, for the sentence.
 * LOFI_INVALID if nothing was given or its size is not set, LOFI_ABI if it is larger. */
lofi_status lofi__options_read(void *full, size_t bytes, const void *given, const char *init);

/* The other way, for results: writes as much of `full` as the caller's struct holds, and leaves
 * `size` as the caller set it. The statuses are those of lofi__options_read. */
lofi_status lofi__options_write(void *given, const void *full, size_t bytes, const char *init);

#endif /* LOFI_CORE_OPTIONS_H */
