/* SPDX-License-Identifier: MIT */
/* One block of one tensor, computed by one thread with its own buffers. */
#ifndef LOFI_MERGE_BLOCK_H
#define LOFI_MERGE_BLOCK_H

#include "kernels/kernels.h"
#include "merge/plan.h"

/* A run of numbers of a job: elements, or halves of complex ones, or bytes where nothing is
 * computed. */
struct lofi__block {
    const struct lofi__job *job;
    uint64_t begin, count;
};

/* The buffers of one thread. */
struct lofi__worker {
    const struct lofi__plan *plan;
    const struct lofi__kernels *kernels;
    size_t buffer_bytes;
    char *memory;       /* a buffer for each source, one for the result, one to compare it with */
    lofi_dtype *dtypes; /* of the sources */
    const void **data;
    lofi_dtype *mixed_dtypes; /* of those that are mixed */
    const void **mixed;
    struct lofi__findings *findings; /* of all threads; not read for a check */
};

/* Bytes of the buffers of a worker. */
size_t lofi__worker_bytes(const struct lofi__plan *plan);
lofi_status lofi__worker_create(struct lofi__worker *worker, const struct lofi__plan *plan,
                                const struct lofi__kernels *kernels);
void lofi__worker_clear(struct lofi__worker *worker);

/* Numbers in a job (none in a factor, which belongs to its module), and in a block of it; how many sources it reads. */
uint64_t lofi__job_numbers(const struct lofi__job *job);
uint64_t lofi__job_block(const struct lofi__plan *plan, const struct lofi__job *job);
int lofi__job_sources(const struct lofi__plan *plan, const struct lofi__job *job);

/* Computes the block and writes it to `fd`, or compares it with what is there. */
lofi_status lofi__block_run(struct lofi__worker *worker, const struct lofi__block *block, int fd,
                            int is_check);

#endif /* LOFI_MERGE_BLOCK_H */
