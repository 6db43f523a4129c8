/* SPDX-License-Identifier: MIT */
/* The output on the disk: complete under its name, or not there. */
#ifndef LOFI_MERGE_OUTPUT_H
#define LOFI_MERGE_OUTPUT_H

#include "merge/plan.h"

struct lofi__place_on_disk {
    const struct lofi__plan *plan;
    char *final;     /* its name, without trailing slashes */
    char *parent;    /* the folder that has it */
    char *temporary; /* beside it: a file, or a folder; NULL: not made yet */
    char **paths;    /* of the files, as long as they are temporary */
    int *fds;
    int had_output; /* there is one that is to be replaced */
    int has_mode;   /* of one that is there, also of an empty folder */
    unsigned mode;
};

/* Refuses to replace what may not be replaced; makes nothing. Discard the output also after an
 * error. */
lofi_status lofi__output_check(const struct lofi__plan *plan, struct lofi__place_on_disk *disk);
/* Makes the files at their full size, with their headers. */
lofi_status lofi__output_create(struct lofi__place_on_disk *disk);
/* Writes a further file of the folder: "name", or "inner/name" after lofi__output_add_folder. */
lofi_status lofi__output_add(struct lofi__place_on_disk *disk, const char *name, const char *text,
                             size_t bytes);
lofi_status lofi__output_add_folder(struct lofi__place_on_disk *disk, const char *name);
lofi_status lofi__output_sync_folder(const struct lofi__place_on_disk *disk, const char *name);
/* Gives the output its name. */
lofi_status lofi__output_commit(struct lofi__place_on_disk *disk);
/* Closes the files, and removes all that still has a temporary name. */
void lofi__output_discard(struct lofi__place_on_disk *disk);

/* others.c: copies the first folder's other files. */
lofi_status lofi__others_copy(struct lofi__place_on_disk *disk);

/* folder.c: removes a folder with all in it; moves what the new folder lacks, and is no checkpoint,
 * from the old one, and removes that. After an error what was not moved is in the old one still. */
int lofi__folder_is_empty(const char *path);
void lofi__folder_remove(const char *path);
lofi_status lofi__folder_merge(const char *old, const char *new);

#endif /* LOFI_MERGE_OUTPUT_H */
