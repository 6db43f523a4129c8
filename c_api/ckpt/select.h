/* SPDX-License-Identifier: MIT */
/* Finds the tensors that --only and --skip mean. */
#ifndef LOFI_CKPT_SELECT_H
#define LOFI_CKPT_SELECT_H

#include "lofi.h"

#include <regex.h>

struct lofi__selection {
    int has_only, has_skip;
    regex_t only, skip;
};

/* An expression of NULL excludes no name. LOFI_INVALID names a bad one. */
lofi_status lofi__selection_create(const char *only, const char *skip,
                                   struct lofi__selection *selection);
void lofi__selection_clear(struct lofi__selection *selection);
lofi_status lofi__selection_has(const struct lofi__selection *selection, const char *name,
                                int *is_selected);

#endif /* LOFI_CKPT_SELECT_H */
