/* SPDX-License-Identifier: MIT */
/* Quantised weights: codes that mean something only together with their scales. */
#ifndef LOFI_CKPT_QUANTIZED_H
#define LOFI_CKPT_QUANTIZED_H

#include "ckpt/kind.h"

/* Tells whether a checkpoint has a tensor of this name. */
typedef int (*lofi__has_fn)(const void *ctx, const char *name);

/* If the tensor holds codes, and the checkpoint has their scales (or zeros, or a map), writes the
 * name of these to `scale` and returns the words for the layout; else NULL. */
const char *lofi__quantized_find(const char *name, const struct lofi__kind *kind, lofi__has_fn has,
                                 const void *ctx, char *scale, size_t bytes);

#endif /* LOFI_CKPT_QUANTIZED_H */
