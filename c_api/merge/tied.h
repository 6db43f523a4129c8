/* SPDX-License-Identifier: MIT */
/* Tied weights: a tensor that one checkpoint has twice, and another once. */
#ifndef LOFI_MERGE_TIED_H
#define LOFI_MERGE_TIED_H

#include "merge/plan.h"

/* Finds the tensor that stands in `other` for one of `owner` that it lacks: of the same name as
 * another tensor of `owner` that is equal to it, bit for bit. NULL, with LOFI_OK: there is none, or
 * not one only. A constant (zeros, ones) is like many, and tied to none. Reads from the disk. */
lofi_status lofi__tied_find(const lofi_checkpoint *owner, const struct lofi__place *place,
                            const lofi_checkpoint *other, const struct lofi__place **found);

#endif /* LOFI_MERGE_TIED_H */
