/* SPDX-License-Identifier: MIT */
/* The memory of a shm communicator: made by its first rank, mapped and checked by all. */
#ifndef LOFI_TRANSPORT_SHM_SEGMENT_H
#define LOFI_TRANSPORT_SHM_SEGMENT_H

#include "lofi.h"
#include "transport/shm_layout.h"

enum lofi__shm_kind {
    LOFI__SHM_MEMFD = 0, /* without a name: found through /proc/<pid>/fd/<fd> */
    LOFI__SHM_FILE = 1,  /* in /dev/shm, under a name until all have mapped it */
    LOFI__SHM_KINDS = 2
};

/* The place where the others find the memory. Sent between ranks as bytes. */
struct lofi__shm_place {
    int32_t kind;
    int32_t pid, fd;
    int32_t reserved;
    uint64_t bytes;
    uint64_t nonce;
    char path[64];
};

struct lofi__shm_segment {
    struct lofi__shm_header *header; /* NULL: not mapped */
    size_t bytes;
    int fd; /* of the rank that made it, until lofi__segment_seal; else -1 */
    struct lofi__shm_place place;
};

/* Makes memory with slots of at least `slot_bytes`. It is reserved, so that no access can fail
 * later. LOFI_SYSTEM says what the system refused. */
lofi_status lofi__segment_create(struct lofi__shm_segment *segment, int kind, int rank_count,
                                 size_t slot_bytes);
/* Maps what `place` says, and verifies that its header is what `rank_count` and this release
 * expect. LOFI_SYSTEM, LOFI_ABI or LOFI_CORRUPT; nothing is mapped then. */
lofi_status lofi__segment_open(struct lofi__shm_segment *segment,
                               const struct lofi__shm_place *place, int rank_count);
/* Takes name and descriptor away: nobody maps it any more, and it ends with the last process that
 * has. A no-op for those who opened it. */
void lofi__segment_seal(struct lofi__shm_segment *segment);
/* Unmaps the memory, and seals it first. */
void lofi__segment_close(struct lofi__shm_segment *segment);

struct lofi__shm_rank *lofi__segment_rank(const struct lofi__shm_segment *segment, int rank);
/* The record of a rank's stage, which is one of its last two. */
struct lofi__shm_stage *lofi__segment_stage(const struct lofi__shm_segment *segment, int rank,
                                            uint32_t stage);
/* Slot 0 or 1 of `rank`, aligned to LOFI__SHM_LINE. */
char *lofi__segment_slot(const struct lofi__shm_segment *segment, int rank, unsigned slot);

#endif /* LOFI_TRANSPORT_SHM_SEGMENT_H */
