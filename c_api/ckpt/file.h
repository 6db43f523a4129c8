/* SPDX-License-Identifier: MIT */
/* One safetensors file that is open for reading; and bytes to and from files. */
#ifndef LOFI_CKPT_FILE_H
#define LOFI_CKPT_FILE_H

#include "ckpt/header.h"

#include <sys/stat.h>

struct lofi__file {
    char *name; /* without its folder */
    char *path;
    int fd;
    struct stat stat; /* when it was opened */
    uint64_t data;    /* where the data begins */
    struct lofi__header header;
};

/* Opens, and checks the header against the size. `path` is copied. Close the file also after an
 * error; one of {.fd = -1} may be closed, too. */
lofi_status lofi__file_open(const char *path, struct lofi__file *file);
void lofi__file_close(struct lofi__file *file);

/* Reads all of the bytes, on any thread. LOFI_CORRUPT if the file has become shorter. */
lofi_status lofi__file_read(const struct lofi__file *file, uint64_t offset, void *out,
                            size_t bytes);

/* Writes all of the bytes to any file that is open; an error calls it `path`. */
lofi_status lofi__file_write(int fd, const char *path, const char *from, size_t bytes,
                             uint64_t offset);

/* LOFI_CORRUPT if the file was written to since it was opened. */
lofi_status lofi__file_check_unchanged(const struct lofi__file *file);

/* Reads a whole small file; the text ends with a NUL. LOFI_CORRUPT beyond `most` bytes. */
lofi_status lofi__file_read_all(const char *path, uint64_t most, char **text, size_t *length);

#endif /* LOFI_CKPT_FILE_H */
