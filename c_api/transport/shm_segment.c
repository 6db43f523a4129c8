/* SPDX-License-Identifier: MIT */
/*
 * Two kinds of memory to share, tried in this order.
 *
 * A memfd has no name, so that no way of ending a process leaves it behind, and counts against no
 * limit of /dev/shm, which containers keep at 64 MiB. The others open it through /proc, which
 * needs the same user and a /proc that shows other processes. Where that is closed, a file in
 * /dev/shm does, created exclusively and without rights for others; it has a name between its
 * creation and the moment when all have mapped it.
 *
 * Blocks are reserved at once (posix_fallocate): a page that the system cannot give later would
 * be a SIGBUS in the middle of a training step. A memfd is sealed against changes of its size, for
 * the same reason.
 */
#define _GNU_SOURCE
#include "transport/shm_segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t segment_bytes(int rank_count, size_t slot_bytes)
{
    return sizeof(struct lofi__shm_header) +
           (size_t)rank_count * (sizeof(struct lofi__shm_rank) + LOFI__SHM_SLOTS * slot_bytes);
}

struct lofi__shm_rank *lofi__segment_rank(const struct lofi__shm_segment *segment, int rank)
{
    return (struct lofi__shm_rank *)(segment->header + 1) + rank;
}

struct lofi__shm_stage *lofi__segment_stage(const struct lofi__shm_segment *segment, int rank,
                                            uint32_t stage)
{
    return &lofi__segment_rank(segment, rank)->stage[stage % LOFI__SHM_SLOTS];
}

char *lofi__segment_slot(const struct lofi__shm_segment *segment, int rank, unsigned slot)
{
    const struct lofi__shm_header *header = segment->header;
    char *first = (char *)lofi__segment_rank(segment, (int)header->rank_count);
    return first + ((size_t)rank * LOFI__SHM_SLOTS + slot) * header->slot_bytes;
}

static lofi_status refuse(const char *what)
{
    lofi_set_error("%s: %s", what, strerror(errno));
    return LOFI_SYSTEM;
}

static int open_memory(struct lofi__shm_place *place)
{
    if (place->kind == LOFI__SHM_MEMFD)
        return memfd_create("lofi", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    snprintf(place->path, sizeof place->path, "/dev/shm/lofi-%d-%016llx", (int)place->pid,
             (unsigned long long)place->nonce);
    return open(place->path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
}

/* The size is fixed from here on. */
static lofi_status reserve(int fd, int kind, size_t bytes)
{
    int error = ftruncate(fd, (off_t)bytes) == 0 ? posix_fallocate(fd, 0, (off_t)bytes) : errno;
    if (error == 0 && fchmod(fd, 0600) != 0) error = errno;
    if (error == 0 && kind == LOFI__SHM_MEMFD &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        error = errno;
    if (error == 0) return LOFI_OK;
    lofi_set_error("%zu KiB of shared memory %s can't be had: %s", bytes >> 10,
                   kind == LOFI__SHM_MEMFD ? "(memfd)" : "in /dev/shm", strerror(error));
    return LOFI_SYSTEM;
}

static lofi_status map(struct lofi__shm_segment *segment, int fd, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED) return refuse("shared memory can't be mapped");
    /* A child has no use for it, and must not keep it alive. */
    if (madvise(memory, bytes, MADV_DONTFORK) != 0) {
        munmap(memory, bytes);
        return refuse("shared memory can't be kept from children");
    }
    segment->header = memory;
    segment->bytes = bytes;
    return LOFI_OK;
}

static void write_header(struct lofi__shm_segment *segment, int rank_count, size_t slot_bytes)
{
    struct lofi__shm_header *header = segment->header; /* all else is zero: fresh pages */

    header->magic = LOFI__SHM_MAGIC;
    header->layout = LOFI__SHM_LAYOUT;
    header->lofi_version = (uint32_t)lofi_version();
    header->rank_count = (uint32_t)rank_count;
    header->rank_bytes = sizeof(struct lofi__shm_rank);
    header->slot_bytes = slot_bytes;
    header->total_bytes = segment->bytes;
    header->nonce = segment->place.nonce;
}

lofi_status lofi__segment_create(struct lofi__shm_segment *segment, int kind, int rank_count,
                                 size_t slot_bytes)
{
    struct lofi__shm_place *place = &segment->place;

    memset(segment, 0, sizeof *segment);
    /* A slot holds a line for each rank at least: see the parts in shm.c. */
    if (slot_bytes < (size_t)rank_count * LOFI__SHM_LINE)
        slot_bytes = (size_t)rank_count * LOFI__SHM_LINE;
    slot_bytes = (slot_bytes + LOFI__SHM_LINE - 1) / LOFI__SHM_LINE * LOFI__SHM_LINE;
    place->kind = kind;
    place->pid = (int32_t)getpid();
    place->bytes = segment_bytes(rank_count, slot_bytes);
    if (getrandom(&place->nonce, sizeof place->nonce, 0) != (ssize_t)sizeof place->nonce)
        return refuse("no random number for a name");
    segment->fd = open_memory(place);
    if (segment->fd < 0)
        return refuse(kind == LOFI__SHM_MEMFD ? "no memfd for shared memory"
                                              : "no file in /dev/shm for shared memory");
    place->fd = segment->fd;
    lofi_status st = reserve(segment->fd, kind, place->bytes);
    if (st == LOFI_OK) st = map(segment, segment->fd, place->bytes);
    if (st != LOFI_OK) {
        lofi__segment_seal(segment);
        return st;
    }
    write_header(segment, rank_count, slot_bytes);
    return LOFI_OK;
}

static lofi_status verify(const struct lofi__shm_header *header,
                          const struct lofi__shm_place *place, int rank_count)
{
    if (header->magic != LOFI__SHM_MAGIC || header->nonce != place->nonce) {
        lofi_set_error("the shared memory is not the one that the first rank made");
        return LOFI_CORRUPT;
    }
    if (header->layout != LOFI__SHM_LAYOUT || header->lofi_version != (uint32_t)lofi_version() ||
        header->rank_bytes != sizeof(struct lofi__shm_rank)) {
        lofi_set_error("the shared memory has layout %u of lofi %u, this process has layout %u of "
                       "lofi %d: install the same release for every rank",
                       (unsigned)header->layout, (unsigned)header->lofi_version,
                       (unsigned)LOFI__SHM_LAYOUT, lofi_version());
        return LOFI_ABI;
    }
    if (header->rank_count != (uint32_t)rank_count || header->total_bytes != place->bytes ||
        header->slot_bytes % LOFI__SHM_LINE != 0 ||
        segment_bytes(rank_count, header->slot_bytes) != place->bytes) {
        lofi_set_error("the shared memory is for %u ranks in %llu bytes, not for %d in %llu",
                       (unsigned)header->rank_count, (unsigned long long)header->total_bytes,
                       rank_count, (unsigned long long)place->bytes);
        return LOFI_CORRUPT;
    }
    return LOFI_OK;
}

lofi_status lofi__segment_open(struct lofi__shm_segment *segment,
                               const struct lofi__shm_place *place, int rank_count)
{
    struct stat file;
    char path[64];

    memset(segment, 0, sizeof *segment);
    segment->fd = -1;
    segment->place = *place;
    if (place->kind == LOFI__SHM_MEMFD)
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)place->pid, (int)place->fd);
    else
        snprintf(path, sizeof path, "%.63s", place->path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        lofi_set_error("shared memory %s can't be opened: %s", path, strerror(errno));
        return LOFI_SYSTEM;
    }
    lofi_status st = LOFI_OK;
    if (fstat(fd, &file) != 0)
        st = refuse("the size of shared memory can't be read");
    else if ((uint64_t)file.st_size != place->bytes ||
             place->bytes < segment_bytes(rank_count, LOFI__SHM_LINE)) {
        lofi_set_error("shared memory %s has %lld bytes, not %llu", path, (long long)file.st_size,
                       (unsigned long long)place->bytes);
        st = LOFI_CORRUPT;
    }
    if (st == LOFI_OK) st = map(segment, fd, place->bytes);
    close(fd);
    if (st != LOFI_OK) return st;
    st = verify(segment->header, place, rank_count);
    if (st != LOFI_OK) lofi__segment_close(segment);
    return st;
}

void lofi__segment_seal(struct lofi__shm_segment *segment)
{
    if (segment->fd < 0) return;
    if (segment->place.kind == LOFI__SHM_FILE) unlink(segment->place.path);
    close(segment->fd);
    segment->fd = -1;
}

void lofi__segment_close(struct lofi__shm_segment *segment)
{
    lofi__segment_seal(segment);
    if (segment->header != NULL) munmap(segment->header, segment->bytes);
    segment->header = NULL;
}
