/* SPDX-License-Identifier: MIT */
/*
 * The mean and the variance of a layer's inputs are not linear in the weights before it, so that
 * their averages are not what the averaged model would see: with BatchNorm, a model average may be
 * far worse than each of its inputs until they are computed again.
 */
#include "merge/statistics.h"

#include <string.h>

static int is_statistic(const char *name)
{
    const char *dot = strrchr(name, '.');
    const char *last = dot != NULL ? dot + 1 : name;
    return strcmp(last, "running_mean") == 0 || strcmp(last, "running_var") == 0;
}

/* Says whether the sources that have a part have different numbers. */
static lofi_status compare(const struct lofi__plan *plan, const struct lofi__job *job,
                           int *are_different)
{
    lofi_difference difference = {.equal = 1};
    lofi_status st = LOFI_OK;
    int first = -1;

    for (int s = 0; s < plan->source_count && st == LOFI_OK && difference.equal; s++) {
        const lofi_checkpoint *c = plan->sources[s];
        if (!plan->mixing.is_mixed[s]) continue;
        if (first >= 0)
            st = lofi_checkpoint_compare(
                plan->sources[first],
                (uint64_t)(job->places[first] - plan->sources[first]->tensors), c,
                (uint64_t)(job->places[s] - c->tensors), &difference);
        else
            first = s;
    }
    *are_different = !difference.equal;
    return st;
}

lofi_status lofi__statistics_count(struct lofi__plan *plan)
{
    for (uint64_t i = 0; i < plan->job_count; i++) {
        const struct lofi__job *job = &plan->jobs[i];
        int are_different;
        if (job->work != LOFI__WORK_MEAN || !is_statistic(job->places[0]->entry->name)) continue;
        lofi_status st = compare(plan, job, &are_different);
        if (st != LOFI_OK) return st;
        plan->statistics_count += (uint64_t)are_different;
    }
    return LOFI_OK;
}
