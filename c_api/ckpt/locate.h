/* SPDX-License-Identifier: MIT */
/* Finds the file that a path means. */
#ifndef LOFI_CKPT_LOCATE_H
#define LOFI_CKPT_LOCATE_H

#include "lofi.h"

struct lofi__location {
    char *folder; /* NULL: a single file */
    char *index;  /* path of the index; NULL: none */
    char *file;   /* path of the only file; NULL: the index has them */
};

/* The texts are the caller's, to be freed with lofi__mem_destroy, also after an error. */
lofi_status lofi__locate(const char *path, struct lofi__location *location);

#endif /* LOFI_CKPT_LOCATE_H */
