/* SPDX-License-Identifier: MIT */
/*
 * A path is a safetensors file, an index, or a folder. In a folder the files of transformers come
 * first, in its order: model.safetensors, then its index. Other libraries (adapters, diffusion
 * pipelines) have other names, so a folder with one index or one file of any name will do.
 */
#define _GNU_SOURCE
#include "ckpt/locate.h"
#include "ckpt/foreign.h"
#include "ckpt/path.h"
#include "core/mem.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

static int is_file(const char *name)
{
    return lofi__path_ends_with(name, LOFI__FILE_END);
}

/* Notes the only name of this kind in `*name`; returns how many there are. */
static int find_kind(DIR *folder, int (*is_kind)(const char *), char *name, size_t bytes)
{
    const struct dirent *entry;
    int found = 0;

    rewinddir(folder);
    while ((entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] == '.' || !is_kind(entry->d_name)) continue;
        if (strlen(entry->d_name) >= bytes) continue;
        strcpy(name, entry->d_name);
        found++;
    }
    return found;
}

static int exists(const char *folder, const char *name)
{
    struct stat found;
    char *path = lofi__path_join(folder, name);
    const int result = path != NULL && lstat(path, &found) == 0;
    lofi__mem_destroy(path);
    return result;
}

static lofi_status find_other(const char *path, char *name, size_t bytes)
{
    DIR *folder = opendir(path);
    if (folder == NULL) return lofi__path_failed(path, "can't be opened");
    int found = find_kind(folder, lofi__path_is_index, name, bytes);
    const char *kind = found > 1 ? "indexes" : "safetensors files and no index";
    if (found == 0) found = find_kind(folder, is_file, name, bytes);
    closedir(folder);
    if (found == 1) return LOFI_OK;
    if (found == 0) return lofi__foreign_refuse_folder(path);
    lofi_set_error("%s: the folder has several %s: name the one that is meant", path, kind);
    return LOFI_INVALID;
}

static lofi_status locate_folder(const char *path, struct lofi__location *location)
{
    char name[256] = "model" LOFI__FILE_END;

    location->folder = lofi__text_create("%s", path);
    if (location->folder == NULL) return LOFI_NO_MEMORY;
    if (!exists(path, name)) strcpy(name, "model" LOFI__INDEX_END);
    lofi_status st = exists(path, name) ? LOFI_OK : find_other(path, name, sizeof name);
    if (st != LOFI_OK) return st;
    char **to = lofi__path_is_index(name) ? &location->index : &location->file;
    *to = lofi__path_join(path, name);
    return *to != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

lofi_status lofi__locate(const char *path, struct lofi__location *location)
{
    struct stat found;

    *location = (struct lofi__location){0};
    if (stat(path, &found) != 0) return lofi__path_failed(path, "can't be opened");
    if (S_ISDIR(found.st_mode)) return locate_folder(path, location);
    char *copy = lofi__text_create("%s", path);
    if (copy == NULL) return LOFI_NO_MEMORY;
    if (!lofi__path_is_index(path) && !lofi__path_ends_with(path, ".index.json")) {
        location->file = copy;
        return LOFI_OK;
    }
    location->index = copy;
    location->folder = lofi__path_folder(path);
    return location->folder != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}
