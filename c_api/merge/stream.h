/* SPDX-License-Identifier: MIT */
/* The data of an average: read, computed and written block by block. */
#ifndef LOFI_MERGE_STREAM_H
#define LOFI_MERGE_STREAM_H

#include "merge/plan.h"

struct lofi__stream_options {
    const int *fds; /* of the plan's outputs, open for writing, or reading to check */
    struct lofi__findings *findings; /* gets what is found while writing */
    int threads;                     /* >= 1 */
    uint64_t done_bytes; /* that were read before, of lofi__stream_bytes: for the progress */
    int is_check;        /* 1: computes with the scalar kernels and compares */
};

/* The number of threads for a plan: as many as were asked for, or CPUs, but no more than there is
 * memory and are blocks for. */
int lofi__stream_threads(const struct lofi__plan *plan);

/* Bytes of the sources that a run reads. */
uint64_t lofi__stream_bytes(const struct lofi__plan *plan);

/* Runs until all is done, or any thread has an error. LOFI_STATE if the progress function asks to
 * end. */
lofi_status lofi__stream_run(const struct lofi__plan *plan,
                             const struct lofi__stream_options *options);

#endif /* LOFI_MERGE_STREAM_H */
