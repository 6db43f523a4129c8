/* SPDX-License-Identifier: MIT */
/* The struct behind lofi_checkpoint, for the rest of ckpt/. */
#ifndef LOFI_CKPT_CHECKPOINT_H
#define LOFI_CKPT_CHECKPOINT_H

#include "ckpt/file.h"

/* The place of a tensor: its file, and its entry in that file's header. */
struct lofi__place {
    const struct lofi__file *file;
    const struct lofi__entry *entry;
};

struct lofi_checkpoint {
    char *path;                     /* as given */
    char *folder;                   /* NULL: it is a single file */
    char *index_path;               /* NULL: there is no index */
    yyjson_mut_doc *index_metadata; /* an object, or without a root; NULL: there is no index */
    struct lofi__file *files;
    uint64_t file_count;
    struct lofi__place *tensors; /* file after file, as they lie */
    uint64_t count;
    uint64_t *by_name; /* numbers of the tensors in the order of their names */
};

/* NULL if there is none. */
const struct lofi__place *lofi__checkpoint_find(const lofi_checkpoint *checkpoint,
                                                const char *name);

/* Tensor `index`; NULL, with the last error set, if there are fewer. */
const struct lofi__place *lofi__checkpoint_place(const lofi_checkpoint *checkpoint, uint64_t index);

/* LOFI_INVALID names what keeps the two from being averaged or compared: shapes, dtypes. */
lofi_status lofi__place_check_pair(const struct lofi__place *first,
                                   const struct lofi__place *other);

/* The offset in the file at which the tensor's data begin. */
uint64_t lofi__place_begin(const struct lofi__place *place);

#endif /* LOFI_CKPT_CHECKPOINT_H */
