/* SPDX-License-Identifier: MIT */
/* Folders as wholes. */
#define _GNU_SOURCE
#include "ckpt/path.h"
#include "core/mem.h"
#include "merge/output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Reads the next name but "." and "..". NULL at the end, or after an error, which is in `*st`. */
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

int lofi__folder_is_empty(const char *path)
{
    lofi_status st = LOFI_OK;
    DIR *list = opendir(path);

    if (list == NULL) return 0;
    const int is_empty = next_name(list, path, &st) == NULL && st == LOFI_OK;
    closedir(list);
    return is_empty;
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    remove(path); /* what can't be removed is left */
    return 0;
}

void lofi__folder_remove(const char *path)
{
    nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static int is_of_checkpoint(const char *name)
{
    return lofi__path_ends_with(name, LOFI__FILE_END) || lofi__path_is_index(name);
}

static int is_folder(int in, const char *name)
{
    struct stat found;
    return fstatat(in, name, &found, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(found.st_mode);
}

/* Moves a file that belongs to no checkpoint, unless the new folder has one of its name. 0: it
 * can't, for the reason in errno. */
static int move_on(int from, int to, const char *name, int is_top)
{
    struct stat found;

    if (is_top && is_of_checkpoint(name)) return 1;
    if (renameat2(from, name, to, name, RENAME_NOREPLACE) == 0 || errno == EEXIST) return 1;
    if (errno != EINVAL && errno != ENOSYS) return 0;
    if (fstatat(to, name, &found, AT_SYMLINK_NOFOLLOW) == 0) return 1;
    return errno == ENOENT && renameat(from, name, to, name) == 0;
}

/* Then what has stayed is replaced. What was put there meanwhile is kept. */
static int remove_replaced(int from, int to, const char *name, int is_top)
{
    struct stat found;

    if (!(is_top && is_of_checkpoint(name)) && fstatat(to, name, &found, AT_SYMLINK_NOFOLLOW) != 0)
        return 1;
    return unlinkat(from, name, 0) == 0;
}

typedef int (*step_fn)(int from, int to, const char *name, int is_top);

static lofi_status merge(const char *old, const char *new, step_fn step, int is_top);

static lofi_status merge_inner(const char *old, const char *new, step_fn step, const char *name)
{
    char *from = lofi__path_join(old, name), *to = lofi__path_join(new, name);
    lofi_status st = from != NULL && to != NULL ? merge(from, to, step, 0) : LOFI_NO_MEMORY;

    lofi__mem_destroy(from);
    lofi__mem_destroy(to);
    return st;
}

static lofi_status merge(const char *old, const char *new, step_fn step, int is_top)
{
    lofi_status st = LOFI_OK;
    const char *name;
    DIR *from = opendir(old);
    const int to = open(new, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (from == NULL || to < 0) st = lofi__path_failed(old, "can't be opened");
    while (st == LOFI_OK && (name = next_name(from, old, &st)) != NULL) {
        if (is_folder(dirfd(from), name) && is_folder(to, name)) {
            st = merge_inner(old, new, step, name);
        } else if (!step(dirfd(from), to, name, is_top)) {
            lofi_set_error("'%.200s' can't be moved: %s", name, strerror(errno));
            st = LOFI_SYSTEM;
        }
    }
    if (from != NULL) closedir(from);
    if (to >= 0) close(to);
    if (st == LOFI_OK && step == remove_replaced && rmdir(old) != 0)
        st = lofi__path_failed(old, "can't be removed");
    return st;
}

lofi_status lofi__folder_merge(const char *old, const char *new)
{
    lofi_status st = merge(old, new, move_on, 1); /* all that could be lost, first */
    return st == LOFI_OK ? merge(old, new, remove_replaced, 1) : st;
}
