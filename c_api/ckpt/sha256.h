/* SPDX-License-Identifier: MIT */
/* SHA-256 (FIPS 180-4), for the origin of an average. */
#ifndef LOFI_CKPT_SHA256_H
#define LOFI_CKPT_SHA256_H

#include "ckpt/file.h"

#define LOFI__SHA256_HEX 65 /* 64 digits and a NUL */

struct lofi__sha256 {
    uint32_t state[8];
    uint64_t bytes;
    unsigned char block[64];
};

void lofi__sha256_begin(struct lofi__sha256 *sha);
void lofi__sha256_add(struct lofi__sha256 *sha, const void *data, size_t bytes);
void lofi__sha256_end(struct lofi__sha256 *sha, char hex[LOFI__SHA256_HEX]);

/* Takes the hash of the whole file, header included. LOFI_STATE if `progress`, which may be NULL,
 * says so: it is called with nothing done of `total`. */
lofi_status lofi__sha256_of_file(const struct lofi__file *file, lofi_progress_fn progress,
                                 void *ctx, uint64_t total, char hex[LOFI__SHA256_HEX]);

#endif /* LOFI_CKPT_SHA256_H */
