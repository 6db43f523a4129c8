/* SPDX-License-Identifier: MIT */
/*
 * Everything is written under a name beside the output's, and renamed when it is complete. A folder
 * is renamed as a whole, an older one exchanged with it in one step: shards of two averages never
 * lie under one index. Space is reserved first, so that a full disk is known before the work.
 *
 * A file without a name (O_TMPFILE) would not outlive a process that is killed, but it can't be
 * renamed over another, and not every file system has it.
 */
#define _GNU_SOURCE
#include "merge/output.h"
#include "ckpt/path.h"
#include "core/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define NAME_TRIES 100

static lofi_status refuse_input(const char *path)
{
    lofi_set_error("%s: the output would replace an input", path);
    return LOFI_INVALID;
}

/* Refuses an output that is the file of this name, or the folder that has it in it. */
static lofi_status check_name(const struct lofi__place_on_disk *disk, const struct stat *out,
                              const char *path)
{
    struct stat found;
    char *folder = lofi__path_folder(path);

    if (folder == NULL) return LOFI_NO_MEMORY;
    const int is_it = stat(path, &found) == 0 && lofi__path_is_same(out, &found);
    const int is_in = stat(folder, &found) == 0 && lofi__path_is_same(out, &found);
    lofi__mem_destroy(folder);
    return is_it || is_in ? refuse_input(disk->final) : LOFI_OK;
}

/* Checks an input by its name, and by the one that links lead to. */
static lofi_status check_input(const struct lofi__place_on_disk *disk, const struct stat *out,
                               const char *path)
{
    lofi_status st = check_name(disk, out, path);
    char *target = st == LOFI_OK ? realpath(path, NULL) : NULL;

    if (target != NULL) st = check_name(disk, out, target);
    free(target);
    return st;
}

static lofi_status check_source(const struct lofi__place_on_disk *disk, const struct stat *out,
                                const lofi_checkpoint *source)
{
    struct stat found;
    lofi_status st = LOFI_OK;

    for (uint64_t f = 0; f < source->file_count && st == LOFI_OK; f++) {
        if (lofi__path_is_same(out, &source->files[f].stat)) return refuse_input(disk->final);
        st = check_input(disk, out, source->files[f].path);
    }
    if (st == LOFI_OK && source->index_path != NULL)
        st = check_input(disk, out, source->index_path);
    if (st != LOFI_OK || source->folder == NULL || stat(source->folder, &found) != 0) return st;
    return lofi__path_is_same(out, &found) ? refuse_input(disk->final) : LOFI_OK;
}

/* Older systems do not say it; the rename at the end fails there. */
static int is_mounted(const char *path)
{
#if defined(STATX_ATTR_MOUNT_ROOT)
    struct statx found;
    return statx(AT_FDCWD, path, 0, STATX_TYPE, &found) == 0 &&
           (found.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
#else
    (void)path;
    return 0;
#endif
}

static lofi_status check_existing(struct lofi__place_on_disk *disk, const struct stat *out)
{
    const struct lofi__plan *plan = disk->plan;
    struct stat link;

    for (int s = 0; s < plan->source_count; s++) {
        lofi_status st = check_source(disk, out, plan->sources[s]);
        if (st != LOFI_OK) return st;
    }
    if (!S_ISREG(out->st_mode) && !S_ISDIR(out->st_mode)) {
        lofi_set_error("%s: it is neither a file nor a folder, and is not replaced", disk->final);
        return LOFI_INVALID;
    }
    disk->has_mode = 1;
    disk->mode = out->st_mode & 07777;
    if (plan->is_folder != (S_ISDIR(out->st_mode) != 0)) {
        lofi_set_error("%s: it is %s folder, and the output will be %s", disk->final,
                       S_ISDIR(out->st_mode) ? "a" : "no", plan->is_folder ? "one" : "a file");
        return LOFI_INVALID;
    }
    if (plan->is_folder && lstat(disk->final, &link) == 0 && S_ISLNK(link.st_mode)) {
        lofi_set_error("%s: it is a link to a folder: name the folder itself", disk->final);
        return LOFI_INVALID;
    }
    if (plan->is_folder && is_mounted(disk->final)) {
        lofi_set_error("%s: another disk is mounted there, so that it can't be replaced: name a "
                       "folder in it",
                       disk->final);
        return LOFI_INVALID;
    }
    disk->had_output = !plan->is_folder || !lofi__folder_is_empty(disk->final);
    if (!disk->had_output || plan->options.force) return LOFI_OK;
    lofi_set_error("%s: it is there already, and is replaced with force (--force) only",
                   disk->final);
    return LOFI_INVALID;
}

/* Refuses a name that promises the other kind of output: a file's for a folder, a folder's for a
 * file. */
static lofi_status check_ending(const struct lofi__place_on_disk *disk)
{
    const char *out = disk->plan->options.out;
    const int is_folder = disk->plan->is_folder;

    if (!lofi__path_ends_with(is_folder ? disk->final : out, is_folder ? LOFI__FILE_END : "/"))
        return LOFI_OK;
    lofi_set_error("%s: this is the name of a %s, and the output will be a %s", out,
                   is_folder ? "file" : "folder", is_folder ? "folder" : "file");
    return LOFI_INVALID;
}

lofi_status lofi__output_check(const struct lofi__plan *plan, struct lofi__place_on_disk *disk)
{
    struct stat out;

    *disk = (struct lofi__place_on_disk){.plan = plan};
    char *name = lofi__path_name(plan->options.out);
    disk->parent = lofi__path_folder(plan->options.out);
    if (name != NULL && disk->parent != NULL) disk->final = lofi__path_join(disk->parent, name);
    const int is_name = name != NULL && name[0] != '\0' && name[0] != '/' &&
                        strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
    lofi__mem_destroy(name);
    if (disk->final == NULL) return LOFI_NO_MEMORY;
    if (!is_name) {
        lofi_set_error("%s: this can't be the name of an output", plan->options.out);
        return LOFI_INVALID;
    }
    lofi_status st = check_ending(disk);
    if (st != LOFI_OK) return st;
    if (stat(disk->parent, &out) != 0) return lofi__path_failed(disk->parent, "can't be found");
    if (stat(disk->final, &out) == 0) return check_existing(disk, &out);
    if (errno != ENOENT) return lofi__path_failed(disk->final, "can't be looked at");
    if (lstat(disk->final, &out) != 0) return LOFI_OK;
    lofi_set_error("%s: it is a link to what is not there", disk->final);
    return LOFI_INVALID;
}

/* Gives the mode of the file that is replaced, with the bits that the work needs. */
static lofi_status set_mode(const struct lofi__place_on_disk *disk, const char *path, unsigned more)
{
    if (!disk->has_mode || chmod(path, disk->mode | more) == 0) return LOFI_OK;
    return lofi__path_failed(disk->final, "the mode of what it replaces can't be kept");
}

/* A free name beside the output: made as a folder, or as a file that is open in fds[0]. */
static lofi_status create_temporary(struct lofi__place_on_disk *disk)
{
    char *name = lofi__path_name(disk->final);
    lofi_status st = name != NULL ? LOFI_OK : LOFI_NO_MEMORY;
    int is_made = 0;

    for (int i = 0; i < NAME_TRIES && st == LOFI_OK && !is_made; i++) {
        char *path =
            lofi__text_create("%s/.lofi-%d-%d-%.100s", disk->parent, (int)getpid(), i, name);
        if (path == NULL) {
            st = LOFI_NO_MEMORY;
        } else if (disk->plan->is_folder) {
            is_made = mkdir(path, 0777) == 0;
        } else {
            disk->fds[0] = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
            is_made = disk->fds[0] >= 0;
        }
        if (!is_made && st == LOFI_OK && errno != EEXIST)
            st = lofi__path_failed(disk->final, "can't be made");
        if (is_made)
            disk->temporary = path;
        else
            lofi__mem_destroy(path);
    }
    lofi__mem_destroy(name);
    if (st == LOFI_OK && is_made) st = set_mode(disk, disk->temporary, 0700);
    if (st != LOFI_OK || is_made) return st;
    return lofi__path_failed(disk->final, "can't be made");
}

/* Gives the file its size, and reserves its blocks where the file system can do that. */
static lofi_status reserve(int fd, const char *path, uint64_t bytes)
{
    if (bytes > INT64_MAX) {
        errno = EFBIG;
        return lofi__path_failed(path, "can't be made");
    }
    if (fallocate(fd, 0, 0, (off_t)bytes) == 0) return LOFI_OK;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return lofi__path_failed(path, "has no room on its disk");
    if (ftruncate(fd, (off_t)bytes) == 0) return LOFI_OK;
    return lofi__path_failed(path, "can't be made so large");
}

static lofi_status create_file(struct lofi__place_on_disk *disk, uint64_t number)
{
    const struct lofi__output *output = &disk->plan->outputs[number];
    const int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC;

    disk->paths[number] = disk->plan->is_folder ? lofi__path_join(disk->temporary, output->name)
                                                : lofi__text_create("%s", disk->temporary);
    if (disk->paths[number] == NULL) return LOFI_NO_MEMORY;
    if (disk->plan->is_folder) disk->fds[number] = open(disk->paths[number], flags, 0666);
    if (disk->fds[number] < 0) return lofi__path_failed(output->path, "can't be made");
    lofi_status st =
        reserve(disk->fds[number], disk->final, output->header_bytes + output->data_bytes);
    if (st == LOFI_OK)
        st = lofi__file_write(disk->fds[number], disk->final, output->header, output->header_bytes,
                              0);
    return st;
}

lofi_status lofi__output_create(struct lofi__place_on_disk *disk)
{
    const uint64_t count = disk->plan->output_count;

    disk->paths = lofi__mem_create(count, sizeof *disk->paths);
    disk->fds = lofi__mem_create(count, sizeof *disk->fds);
    if (disk->paths == NULL || disk->fds == NULL) return LOFI_NO_MEMORY;
    for (uint64_t i = 0; i < count; i++)
        disk->fds[i] = -1;
    lofi_status st = create_temporary(disk);
    for (uint64_t i = 0; i < count && st == LOFI_OK; i++)
        st = create_file(disk, i);
    return st;
}

static lofi_status sync_path(const struct lofi__place_on_disk *disk, const char *path)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const int is_synced = fd >= 0 && fsync(fd) == 0;
    lofi_status st =
        is_synced ? LOFI_OK : lofi__path_failed(disk->final, "can't be brought to the disk");
    if (fd >= 0) close(fd);
    return st;
}

lofi_status lofi__output_add(struct lofi__place_on_disk *disk, const char *name, const char *text,
                             size_t bytes)
{
    char *path = lofi__path_join(disk->temporary, name);
    char *shown = lofi__path_join(disk->final, name);
    lofi_status st = path != NULL && shown != NULL ? LOFI_OK : LOFI_NO_MEMORY;

    if (st == LOFI_OK) {
        const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        st = fd < 0 ? lofi__path_failed(shown, "can't be made")
                    : lofi__file_write(fd, shown, text, bytes, 0);
        if (fd >= 0 && close(fd) != 0 && st == LOFI_OK)
            st = lofi__path_failed(shown, "can't be written");
    }
    if (st == LOFI_OK && disk->plan->options.fsync) st = sync_path(disk, path);
    lofi__mem_destroy(path);
    lofi__mem_destroy(shown);
    return st;
}

lofi_status lofi__output_add_folder(struct lofi__place_on_disk *disk, const char *name)
{
    char *path = lofi__path_join(disk->temporary, name);
    if (path == NULL) return LOFI_NO_MEMORY;
    lofi_status st =
        mkdir(path, 0777) == 0 ? LOFI_OK : lofi__path_failed(disk->final, "can't be made");
    lofi__mem_destroy(path);
    return st;
}

/* Does nothing without the option `fsync`. */
lofi_status lofi__output_sync_folder(const struct lofi__place_on_disk *disk, const char *name)
{
    if (!disk->plan->options.fsync) return LOFI_OK;
    char *path = lofi__path_join(disk->temporary, name);
    lofi_status st = path != NULL ? sync_path(disk, path) : LOFI_NO_MEMORY;
    lofi__mem_destroy(path);
    return st;
}

static lofi_status close_files(struct lofi__place_on_disk *disk)
{
    const int is_synced = disk->plan->options.fsync;

    for (uint64_t i = 0; i < disk->plan->output_count; i++) {
        const int fd = disk->fds[i];
        if (is_synced && fsync(fd) != 0)
            return lofi__path_failed(disk->final, "can't be brought to the disk");
        disk->fds[i] = -1;
        if (close(fd) != 0) return lofi__path_failed(disk->final, "can't be written");
    }
    return is_synced && disk->plan->is_folder ? sync_path(disk, disk->temporary) : LOFI_OK;
}

/* On a file system that can't exchange names, there is no output for a moment. The new folder gets
 * its name, the old one what was the temporary one's. */
static lofi_status exchange(struct lofi__place_on_disk *disk)
{
    if (renameat2(AT_FDCWD, disk->temporary, AT_FDCWD, disk->final, RENAME_EXCHANGE) == 0)
        return LOFI_OK;
    if (errno != EINVAL && errno != ENOSYS)
        return lofi__path_failed(disk->final, "can't be replaced");
    char *aside = lofi__text_create("%s-old", disk->temporary);
    if (aside == NULL) return LOFI_NO_MEMORY;
    if (rename(disk->final, aside) != 0 || rename(disk->temporary, disk->final) != 0) {
        lofi_status st = lofi__path_failed(disk->final, "can't be replaced");
        rename(aside, disk->final);
        lofi__mem_destroy(aside);
        return st;
    }
    lofi__mem_destroy(disk->temporary);
    disk->temporary = aside;
    return LOFI_OK;
}

/* A signal to end waits: what is half moved is hard to find again. */
static lofi_status exchange_and_merge(struct lofi__place_on_disk *disk, int *is_exchanged)
{
    sigset_t ends, before;

    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &ends, &before);
    lofi_status st = exchange(disk);
    *is_exchanged = st == LOFI_OK;
    if (st == LOFI_OK) st = lofi__folder_merge(disk->temporary, disk->final);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return st;
}

static lofi_status replace_folder(struct lofi__place_on_disk *disk)
{
    int is_exchanged;
    lofi_status st = exchange_and_merge(disk, &is_exchanged);
    if (!is_exchanged) return st;
    if (st != LOFI_OK) {
        char *why = lofi__text_create("%s", lofi_last_error());
        lofi_set_error("%s: the average is complete, but what was there before is in %s still: %s",
                       disk->final, disk->temporary, why != NULL ? why : "out of memory");
        lofi__mem_destroy(why);
    }
    lofi__mem_destroy(disk->temporary); /* it is gone, or has what may not be lost */
    disk->temporary = NULL;
    if (st == LOFI_OK && disk->plan->options.fsync) st = sync_path(disk, disk->final);
    return st;
}

static lofi_status rename_new(struct lofi__place_on_disk *disk)
{
    /* With force the output may have come meanwhile, of another process: the last one stays. A
     * folder is never renamed over one that has something in it. */
    const int may_replace = disk->had_output || disk->plan->is_folder || disk->plan->options.force;
    const unsigned flags = may_replace ? 0 : RENAME_NOREPLACE;
    int failed = renameat2(AT_FDCWD, disk->temporary, AT_FDCWD, disk->final, flags) != 0;
    if (failed && (errno == EINVAL || errno == ENOSYS))
        failed = rename(disk->temporary, disk->final) != 0;
    const int is_there = failed && (errno == ENOTEMPTY || errno == EEXIST);
    if (is_there && disk->plan->is_folder && disk->plan->options.force) return replace_folder(disk);
    if (failed) return lofi__path_failed(disk->final, "can't get its name");
    lofi__mem_destroy(disk->temporary);
    disk->temporary = NULL;
    return LOFI_OK;
}

/* Two processes that replace one folder would take each other's files. Where the file system has no
 * locks, they may. */
static int lock_parent(const struct lofi__place_on_disk *disk)
{
    const int fd = open(disk->parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    while (fd >= 0 && flock(fd, LOCK_EX) != 0 && errno == EINTR)
        ;
    return fd;
}

static lofi_status give_name(struct lofi__place_on_disk *disk)
{
    const int is_exchange = disk->plan->is_folder && disk->had_output;
    const int lock = lock_parent(disk);

    lofi_status st = is_exchange ? replace_folder(disk) : rename_new(disk);
    if (st == LOFI_OK && disk->plan->is_folder) st = set_mode(disk, disk->final, 0);
    if (st == LOFI_OK && disk->plan->options.fsync) st = sync_path(disk, disk->parent);
    if (lock >= 0) close(lock);
    return st;
}

lofi_status lofi__output_commit(struct lofi__place_on_disk *disk)
{
    lofi_status st = close_files(disk);
    if (st == LOFI_OK && !disk->plan->is_folder) st = set_mode(disk, disk->temporary, 0);
    return st == LOFI_OK ? give_name(disk) : st;
}

void lofi__output_discard(struct lofi__place_on_disk *disk)
{
    for (uint64_t i = 0; disk->fds != NULL && i < disk->plan->output_count; i++)
        if (disk->fds[i] >= 0) close(disk->fds[i]);
    if (disk->temporary != NULL && disk->plan->is_folder)
        lofi__folder_remove(disk->temporary);
    else if (disk->temporary != NULL)
        unlink(disk->temporary);
    for (uint64_t i = 0; disk->paths != NULL && i < disk->plan->output_count; i++)
        lofi__mem_destroy(disk->paths[i]);
    lofi__mem_destroy(disk->paths);
    lofi__mem_destroy(disk->fds);
    lofi__mem_destroy(disk->temporary);
    lofi__mem_destroy(disk->parent);
    lofi__mem_destroy(disk->final);
}
