/* SPDX-License-Identifier: MIT */
/* Checkpoints that fit by names and shapes, and of which an average would mean nothing. */
#ifndef LOFI_MERGE_CHECK_H
#define LOFI_MERGE_CHECK_H

#include "ckpt/select.h"
#include "merge/plan.h"

/* LOFI_INVALID names a selected tensor that holds codes of quantised weights, or a config that says
 * that there are some. */
lofi_status lofi__quantized_check(const struct lofi__plan *plan,
                                  const struct lofi__selection *selection);

/* LOFI_INVALID names what the configs, or the tokenizers, of two sources differ in, if that changes
 * what a model computes; other differences are logged. */
lofi_status lofi__configs_check(const struct lofi__plan *plan);

/* Reads a file beside the weights. `*text` is NULL if the source is no folder, or the file is not
 * there, too large or can't be read: nothing is said of it then. Free it with lofi__mem_destroy. */
lofi_status lofi__side_file_read(const lofi_checkpoint *source, const char *name, char **text,
                                 size_t *bytes);

#endif /* LOFI_MERGE_CHECK_H */
