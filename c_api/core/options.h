/* SPDX-License-Identifier: MIT */
/* Option structs of callers that were compiled with this or an older lofi.h. */
#ifndef LOFI_CORE_OPTIONS_H
#define LOFI_CORE_OPTIONS_H

#include "lofi/base.h"

lofi_status lofi__options_read(void *full, size_t bytes, const void *given, const char *init);

#endif /* LOFI_CORE_OPTIONS_H */
