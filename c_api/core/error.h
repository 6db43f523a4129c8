/* SPDX-License-Identifier: MIT */
/* The last error as the library itself sees it, beyond lofi_set_error. */
#ifndef LOFI_CORE_ERROR_H
#define LOFI_CORE_ERROR_H

#include <stddef.h>

/* Room for one sentence that quotes the settings of two ranks. */
#define LOFI__ERROR_BYTES 3072

/* How many errors this thread has set. Whoever calls back into the host compares before and
 * after, and so knows whether the host gave a reason; a look at the text alone would take an old
 * error for a new one. */
unsigned lofi__error_count(void);

#endif /* LOFI_CORE_ERROR_H */
