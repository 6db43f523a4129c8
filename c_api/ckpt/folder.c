/* SPDX-License-Identifier: MIT */
/*
 * The files around the weights. What is copied is decided by what is left out: weights in any
 * format (they would no longer belong to the average), hidden files, folders, and what is large.
 * A list of names to copy would never be complete.
 */
#define _GNU_SOURCE
#include "ckpt/output.h"
#include "ckpt/path.h"
#include "core/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define COPY_MOST ((off_t)64 << 20)

static const char *const weights[] = {
    ".safetensors", ".safetensors.index.json",
    ".bin",         ".bin.index.json",
    ".pt",          ".pth",
    ".ckpt",        ".h5",
    ".gguf",        ".msgpack",
    ".onnx",        ".ot",
};

static int is_weights(const char *name)
{
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (lofi__path_ends_with(name, weights[i])) return 1;
    return 0;
}

static lofi_status copy_file(struct lofi__place_on_disk *disk, const char *path, const char *name)
{
    const char *folder = disk->plan->sources[0]->folder;
    struct stat found;
    char *text = NULL;
    size_t bytes = 0;

    if (stat(path, &found) != 0) return lofi__path_failed(path, "can't be looked at");
    if (!S_ISREG(found.st_mode) || found.st_size > COPY_MOST) return LOFI_OK;
    lofi_status st = lofi__path_check_inside(folder, path);
    if (st == LOFI_OK) st = lofi__file_read_all(path, (uint64_t)COPY_MOST, &text, &bytes);
    if (st == LOFI_OK) st = lofi__output_add(disk, name, text, bytes);
    lofi__mem_destroy(text);
    return st;
}

lofi_status lofi__folder_copy_others(struct lofi__place_on_disk *disk)
{
    const char *folder = disk->plan->sources[0]->folder;
    const struct dirent *entry;
    lofi_status st = LOFI_OK;

    if (folder == NULL) return LOFI_OK;
    DIR *list = opendir(folder);
    if (list == NULL) return lofi__path_failed(folder, "can't be opened");
    while (st == LOFI_OK && (entry = readdir(list)) != NULL) {
        if (entry->d_name[0] == '.' || is_weights(entry->d_name)) continue;
        char *path = lofi__path_join(folder, entry->d_name);
        st = path != NULL ? copy_file(disk, path, entry->d_name) : LOFI_NO_MEMORY;
        lofi__mem_destroy(path);
    }
    closedir(list);
    return st;
}

static int is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

int lofi__folder_is_empty(const char *path)
{
    const struct dirent *entry;
    int count = 0;
    DIR *list = opendir(path);

    if (list == NULL) return 0;
    while ((entry = readdir(list)) != NULL)
        count += !is_dots(entry->d_name);
    closedir(list);
    return count == 0;
}

/* Files only: what lofi makes has no folders in it, and what it replaces has lost them before. */
void lofi__folder_remove(const char *path)
{
    const struct dirent *entry;
    DIR *list = opendir(path);

    if (list == NULL) return;
    while ((entry = readdir(list)) != NULL)
        if (!is_dots(entry->d_name)) unlinkat(dirfd(list), entry->d_name, 0);
    closedir(list);
    rmdir(path);
}

static int is_of_checkpoint(const char *name)
{
    return lofi__path_ends_with(name, ".safetensors") ||
           lofi__path_ends_with(name, ".safetensors.index.json");
}

lofi_status lofi__folder_keep_others(const char *old, const char *new)
{
    const struct dirent *entry;
    lofi_status st = LOFI_OK;
    DIR *from = opendir(old);
    const int to = open(new, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (from == NULL || to < 0) st = lofi__path_failed(new, "can't be opened");
    while (st == LOFI_OK && (entry = readdir(from)) != NULL) {
        if (is_dots(entry->d_name) || is_of_checkpoint(entry->d_name)) continue;
        if (faccessat(to, entry->d_name, F_OK, AT_SYMLINK_NOFOLLOW) == 0) continue;
        if (renameat(dirfd(from), entry->d_name, to, entry->d_name) == 0) continue;
        lofi_set_error(
            "%s: the average is complete, but '%.200s' stays in %s, where what was there "
            "before is: %s",
            new, entry->d_name, old, strerror(errno));
        st = LOFI_SYSTEM;
    }
    if (from != NULL) closedir(from);
    if (to >= 0) close(to);
    return st;
}
