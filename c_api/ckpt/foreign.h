/* SPDX-License-Identifier: MIT */
/* Files and folders that are no checkpoint of safetensors: what they are, and what to do then. */
#ifndef LOFI_CKPT_FOREIGN_H
#define LOFI_CKPT_FOREIGN_H

#include "lofi.h"

/* The bytes of a file's beginning that tell its kind. */
#define LOFI__FOREIGN_BYTES 512

/* Looks at the first `bytes` bytes of a file, and at its name. LOFI_CORRUPT, with the sentence, if
 * it is of a kind that is known; else LOFI_OK. */
lofi_status lofi__foreign_refuse(const char *path, const unsigned char *head, size_t bytes);

/* Says what a folder without safetensors files has instead. LOFI_INVALID always. */
lofi_status lofi__foreign_refuse_folder(const char *path);

#endif /* LOFI_CKPT_FOREIGN_H */
