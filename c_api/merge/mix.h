/* SPDX-License-Identifier: MIT */
/* The sources that an average is of, and the average of a run of their numbers. */
#ifndef LOFI_MERGE_MIX_H
#define LOFI_MERGE_MIX_H

#include "merge/block.h"

/* Fills in plan->mixing, whose sources are open. Clear it also after an error. */
lofi_status lofi__mixing_create(struct lofi__plan *plan);
void lofi__mixing_clear(struct lofi__mixing *mixing);

/* Averages `count` of the numbers that the worker has read, from number `begin` on. */
void lofi__mix_run(struct lofi__worker *worker, lofi_dtype dtype, size_t begin, void *out,
                   size_t count);

#endif /* LOFI_MERGE_MIX_H */
