/* SPDX-License-Identifier: MIT */
/* Names of files. */
#ifndef LOFI_CKPT_PATH_H
#define LOFI_CKPT_PATH_H

#include "lofi.h"

#include <sys/stat.h>

#define LOFI__FILE_END ".safetensors"
#define LOFI__INDEX_END ".safetensors.index.json"

/* Prints into memory of lofi__mem. NULL: there is none, and the caller returns LOFI_NO_MEMORY. */
char *lofi__text_create(const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 1, 2)))
#endif
    ;

/* These make "folder/name"; the folder part of a path ("." if it has none); and its last part.
 * Trailing slashes do not count. Free the texts with lofi__mem_destroy. */
char *lofi__path_join(const char *folder, const char *name);
char *lofi__path_folder(const char *path);
char *lofi__path_name(const char *path);

/* Finds the last part where it stands in a path without trailing slashes. */
const char *lofi__path_last(const char *path);

int lofi__path_ends_with(const char *path, const char *end);
/* The name of an index: model.safetensors.index.json, or of a variant:
 * model.safetensors.index.fp16.json, in older files model.safetensors.fp16.index.json. */
int lofi__path_is_index(const char *path);

/* Checks that `path`, a file that `folder` is said to hold, lies in it when links are followed.
 * Links into the blobs of a Hugging Face cache count, if the folder is in a snapshot of that
 * cache. LOFI_CORRUPT names the file; LOFI_SYSTEM if it can't be found. */
lofi_status lofi__path_check_inside(const char *folder, const char *path);

/* Sets the error "<path>: <what>: <why>" by errno, and returns LOFI_SYSTEM. */
lofi_status lofi__path_failed(const char *path, const char *what);

int lofi__path_is_same(const struct stat *a, const struct stat *b);

#endif /* LOFI_CKPT_PATH_H */
