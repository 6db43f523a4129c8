/* SPDX-License-Identifier: MIT */
/*
 * Files are read with pread into buffers, not mapped. A mapping saves a copy, which measured as
 * a tenth of an average's time with files in the page cache; but another process that shortens the
 * file turns every access into SIGBUS, which a library can't handle, an error of the disk does the
 * same, elements need not be aligned in a file, and dropping pages behind keeps memory low only as
 * long as one remembers it. With pread each of these is an error code or nothing.
 */
#define _GNU_SOURCE
#include "ckpt/file.h"
#include "ckpt/foreign.h"
#include "ckpt/path.h"
#include "core/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define LENGTH_BYTES 8

static lofi_status read_at(int fd, const char *path, uint64_t offset, void *out, size_t bytes)
{
    char *to = out;

    while (bytes > 0) {
        const ssize_t got = pread(fd, to, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return lofi__path_failed(path, "can't be read");
        if (got == 0) {
            lofi_set_error("%s: it ends at byte %" PRIu64 ", and was longer when it was opened",
                           path, offset);
            return LOFI_CORRUPT;
        }
        to += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return LOFI_OK;
}

lofi_status lofi__file_read(const struct lofi__file *file, uint64_t offset, void *out, size_t bytes)
{
    return read_at(file->fd, file->path, offset, out, bytes);
}

/* Not blocking: the name may be that of a pipe. */
static lofi_status open_regular(const char *path, int *fd, struct stat *found)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (*fd < 0) return lofi__path_failed(path, "can't be opened");
    if (fstat(*fd, found) != 0) return lofi__path_failed(path, "can't be looked at");
    if (S_ISREG(found->st_mode)) return LOFI_OK;
    lofi_set_error("%s: it is not a regular file", path);
    return LOFI_INVALID;
}

static lofi_status refuse_foreign(const struct lofi__file *file)
{
    const uint64_t size = (uint64_t)file->stat.st_size;
    unsigned char head[LOFI__FOREIGN_BYTES] = {0};
    const size_t bytes = size < sizeof head ? (size_t)size : sizeof head;

    lofi_status st = lofi__file_read(file, 0, head, bytes);
    return st == LOFI_OK ? lofi__foreign_refuse(file->path, head, bytes) : st;
}

static lofi_status read_length(struct lofi__file *file, uint64_t *length)
{
    const uint64_t size = (uint64_t)file->stat.st_size;
    unsigned char bytes[LENGTH_BYTES];

    if (size < LENGTH_BYTES) {
        lofi_set_error("%s: %" PRIu64 " bytes are too few for a checkpoint: its copy or its "
                       "download did not end",
                       file->path, size);
        return LOFI_CORRUPT;
    }
    lofi_status st = lofi__file_read(file, 0, bytes, sizeof bytes);
    if (st != LOFI_OK) return st;
    *length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        *length = *length << 8 | bytes[i];
    if (*length > 0 && *length <= LOFI__HEADER_MAX && *length <= size - LENGTH_BYTES)
        return LOFI_OK;
    st = refuse_foreign(file);
    if (st != LOFI_OK || *length == 0) return st; /* of none, its reader says what is wrong */
    lofi_set_error("%s: its header is said to have %" PRIu64 " bytes; the file has %" PRIu64
                   ", and %" PRIu64 " are allowed: it is cut short (download it again), or no "
                   "safetensors file",
                   file->path, *length, size, LOFI__HEADER_MAX);
    return LOFI_CORRUPT;
}

static lofi_status read_header(struct lofi__file *file)
{
    uint64_t length = 0;
    lofi_status st = read_length(file, &length);
    if (st != LOFI_OK) return st;
    char *text = lofi__mem_create(length, 1);
    if (text == NULL) return LOFI_NO_MEMORY;
    st = lofi__file_read(file, LENGTH_BYTES, text, length);
    file->data = LENGTH_BYTES + length;
    if (st == LOFI_OK)
        st = lofi__header_parse(file->path, text, length, (uint64_t)file->stat.st_size - file->data,
                                &file->header);
    lofi__mem_destroy(text);
    return st;
}

lofi_status lofi__file_open(const char *path, struct lofi__file *file)
{
    *file = (struct lofi__file){.fd = -1};
    file->path = lofi__text_create("%s", path);
    file->name = lofi__path_name(path);
    if (file->path == NULL || file->name == NULL) return LOFI_NO_MEMORY;
    lofi_status st = open_regular(path, &file->fd, &file->stat);
    if (st != LOFI_OK) return st;
    posix_fadvise(file->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* a hint: its failure is none */
    return read_header(file);
}

void lofi__file_close(struct lofi__file *file)
{
    if (file->fd >= 0) close(file->fd);
    lofi__mem_destroy(file->path);
    lofi__mem_destroy(file->name);
    lofi__header_clear(&file->header);
    *file = (struct lofi__file){.fd = -1};
}

lofi_status lofi__file_write(int fd, const char *path, const char *from, size_t bytes,
                             uint64_t offset)
{
    while (bytes > 0) {
        const ssize_t done = pwrite(fd, from, bytes, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return lofi__path_failed(path, "can't be written");
        from += done;
        offset += (uint64_t)done;
        bytes -= (size_t)done;
    }
    return LOFI_OK;
}

lofi_status lofi__file_check_unchanged(const struct lofi__file *file)
{
    struct stat now;
    if (fstat(file->fd, &now) != 0) return lofi__path_failed(file->path, "can't be looked at");
    if (now.st_size == file->stat.st_size && now.st_mtim.tv_sec == file->stat.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == file->stat.st_mtim.tv_nsec)
        return LOFI_OK;
    lofi_set_error("%s: it was written to while it was read", file->path);
    return LOFI_CORRUPT;
}

lofi_status lofi__file_read_all(const char *path, uint64_t most, char **text, size_t *length)
{
    struct stat found;
    int fd = -1;
    char *all = NULL;

    lofi_status st = open_regular(path, &fd, &found);
    if (st == LOFI_OK && (uint64_t)found.st_size > most) {
        lofi_set_error("%s: it has %" PRIu64 " bytes, more than the %" PRIu64 " that are allowed",
                       path, (uint64_t)found.st_size, most);
        st = LOFI_CORRUPT;
    }
    if (st == LOFI_OK) {
        all = lofi__mem_create((size_t)found.st_size + 1, 1);
        st = all != NULL ? read_at(fd, path, 0, all, (size_t)found.st_size) : LOFI_NO_MEMORY;
    }
    if (fd >= 0) close(fd);
    if (st != LOFI_OK) {
        lofi__mem_destroy(all);
        return st;
    }
    *text = all;
    *length = (size_t)found.st_size;
    return LOFI_OK;
}
