/* SPDX-License-Identifier: MIT */
/* Numbers that an average should not have: counted by the threads that average, told at the end. */
#ifndef LOFI_MERGE_FINDINGS_H
#define LOFI_MERGE_FINDINGS_H

#include "merge/block.h"

#include <pthread.h>

struct lofi__findings {
    const struct lofi__plan *plan;
    pthread_mutex_t lock;
    uint64_t *counts; /* for each job: of each source, and of what is too large; NULL: all are 0 */
};

void lofi__findings_create(struct lofi__findings *findings, const struct lofi__plan *plan);
void lofi__findings_clear(struct lofi__findings *findings);

/* Looks at the numbers that a worker has read for the job, and at their average. Any thread. */
lofi_status lofi__findings_look(struct lofi__worker *worker, const struct lofi__job *job,
                                const char *out, size_t count);

/* Adds to what was found in a job's numbers: of a source that are not finite, or, for the number
 * `source_count`, of the output that are beyond its dtype. Any thread. */
lofi_status lofi__findings_add(struct lofi__findings *findings, const struct lofi__job *job,
                               int source, uint64_t count);

/* Logs what was found, and tells it to the function of the options. */
void lofi__findings_tell(const struct lofi__findings *findings);

#endif /* LOFI_MERGE_FINDINGS_H */
