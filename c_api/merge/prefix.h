/* SPDX-License-Identifier: MIT */
/* What all names of a checkpoint begin with, and others' do not: "module." of DDP. */
#ifndef LOFI_MERGE_PREFIX_H
#define LOFI_MERGE_PREFIX_H

#include "merge/plan.h"

/* Takes the prefixes of the options off the names of each source whose names all begin with them.
 * LOFI_INVALID for one that is nowhere. */
lofi_status lofi__prefixes_strip(struct lofi__plan *plan);

/* A text that explains why names differ, to be put behind the sentence that says so, and freed with
 * lofi__mem_destroy; "" if prefixes do not explain it. NULL: there is no memory. */
char *lofi__prefix_hint(const lofi_checkpoint *a, const lofi_checkpoint *b);

#endif /* LOFI_MERGE_PREFIX_H */
