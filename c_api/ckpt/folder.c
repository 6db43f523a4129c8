/* SPDX-License-Identifier: MIT */
/*
 * The files around the weights. What is copied is decided by what is left out: weights in any
 * format (they would no longer belong to the average), hidden files, folders, and what is large.
 * A list of names to copy would never be complete. What can't be copied is said, and is no reason
 * to give up an average.
 */
#define _GNU_SOURCE
#include "ckpt/config.h"
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

static int is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* Part of the first checkpoint or of the output, whatever it is called. */
static int is_of_plan(const struct lofi__plan *plan, const char *name)
{
    const lofi_checkpoint *first = plan->sources[0];

    if (plan->index_name != NULL && strcmp(plan->index_name, name) == 0) return 1;
    if (first->index_path != NULL && strcmp(last_part(first->index_path), name) == 0) return 1;
    for (uint64_t i = 0; i < first->file_count; i++)
        if (strcmp(first->files[i].name, name) == 0) return 1;
    for (uint64_t i = 0; i < plan->output_count; i++)
        if (strcmp(plan->outputs[i].name, name) == 0) return 1;
    return 0;
}

/* 0, and a warning, for what is not to be had. */
static int is_copied(const char *folder, const char *path)
{
    struct stat found;

    if (stat(path, &found) != 0) {
        lofi_log(LOFI_LOG_WARN, "%s: it is not copied: %s", path, strerror(errno));
        return 0;
    }
    if (!S_ISREG(found.st_mode)) return 0;
    if (found.st_size > COPY_MOST) {
        lofi_log(LOFI_LOG_WARN, "%s: it is not copied: it is larger than 64 MiB", path);
        return 0;
    }
    if (lofi__path_check_inside(folder, path) == LOFI_OK) return 1;
    lofi_log(LOFI_LOG_WARN, "%s (it is not copied)", lofi_last_error());
    return 0;
}

static lofi_status copy_file(struct lofi__place_on_disk *disk, const char *path, const char *name)
{
    const struct lofi__plan *plan = disk->plan;
    char *text = NULL;
    size_t bytes = 0;

    if (is_of_plan(plan, name) || !is_copied(plan->sources[0]->folder, path)) return LOFI_OK;
    lofi_status st = lofi__file_read_all(path, (uint64_t)COPY_MOST, &text, &bytes);
    if (st == LOFI_OK && plan->kind != NULL && strcmp(name, "config.json") == 0)
        st = lofi__config_set_dtype(lofi_dtype_name(plan->kind->dtype), &text, &bytes);
    if (st == LOFI_OK) st = lofi__output_add(disk, name, text, bytes);
    lofi__mem_destroy(text);
    return st;
}

/* The next name but "." and ".."; NULL at the end, or with `*st` set. */
static const char *next_name(DIR *list, const char *folder, lofi_status *st)
{
    const struct dirent *entry;

    do {
        errno = 0;
        entry = readdir(list);
    } while (entry != NULL && is_dots(entry->d_name));
    if (entry != NULL) return entry->d_name;
    if (errno != 0) *st = lofi__path_failed(folder, "can't be read");
    return NULL;
}

lofi_status lofi__folder_copy_others(struct lofi__place_on_disk *disk)
{
    const char *folder = disk->plan->sources[0]->folder, *name;
    lofi_status st = LOFI_OK;

    if (folder == NULL) return LOFI_OK;
    DIR *list = opendir(folder);
    if (list == NULL) return lofi__path_failed(folder, "can't be opened");
    while (st == LOFI_OK && (name = next_name(list, folder, &st)) != NULL) {
        if (name[0] == '.' || is_weights(name)) continue;
        char *path = lofi__path_join(folder, name);
        st = path != NULL ? copy_file(disk, path, name) : LOFI_NO_MEMORY;
        lofi__mem_destroy(path);
    }
    closedir(list);
    return st;
}

int lofi__folder_is_empty(const char *path)
{
    lofi_status st = LOFI_OK;
    DIR *list = opendir(path);

    if (list == NULL) return 0;
    const int is_empty = next_name(list, path, &st) == NULL && st == LOFI_OK;
    closedir(list);
    return is_empty;
}

/* Of one that lofi made: there are no folders in it. */
void lofi__folder_remove(const char *path)
{
    const char *name;
    lofi_status st = LOFI_OK;
    DIR *list = opendir(path);

    if (list == NULL) return;
    while ((name = next_name(list, path, &st)) != NULL)
        unlinkat(dirfd(list), name, 0);
    closedir(list);
    rmdir(path);
}

static int is_of_checkpoint(const char *name)
{
    return lofi__path_ends_with(name, ".safetensors") ||
           lofi__path_ends_with(name, ".safetensors.index.json");
}

/* Removes what the new folder replaces, and moves the rest. 0: it stays, for the reason in errno. */
static int move_on(int from, int to, const char *name)
{
    if (is_of_checkpoint(name) || faccessat(to, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return unlinkat(from, name, 0) == 0;
    return renameat(from, name, to, name) == 0;
}

lofi_status lofi__folder_merge(const char *old, const char *new)
{
    lofi_status st = LOFI_OK;
    const char *name;
    DIR *from = opendir(old);
    const int to = open(new, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (from == NULL || to < 0) st = lofi__path_failed(old, "can't be opened");
    while (st == LOFI_OK && (name = next_name(from, old, &st)) != NULL) {
        if (move_on(dirfd(from), to, name)) continue;
        lofi_set_error("'%.200s' can't be moved: %s", name, strerror(errno));
        st = LOFI_SYSTEM;
    }
    if (from != NULL) closedir(from);
    if (to >= 0) close(to);
    /* What was put there meanwhile makes this fail, and is kept. */
    if (st == LOFI_OK && rmdir(old) != 0) st = lofi__path_failed(old, "can't be removed");
    return st;
}
