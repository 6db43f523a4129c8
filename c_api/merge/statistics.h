/* SPDX-License-Identifier: MIT */
/* The running statistics of BatchNorm. */
#ifndef LOFI_MERGE_STATISTICS_H
#define LOFI_MERGE_STATISTICS_H

#include "merge/plan.h"

/* What is to be said where they were averaged: what to do, by names that torch's users know. */
#define LOFI__STATISTICS_NOTE                                                                      \
    "running statistics of BatchNorm (running_mean, running_var) are averages now, and not those " \
    "of the averaged weights: recompute them on data (torch.optim.swa_utils.update_bn)"

/* Counts, in the plan, the tensors of this kind that are averaged and not the same everywhere:
 * frozen ones are, and stay right. */
lofi_status lofi__statistics_count(struct lofi__plan *plan);

#endif /* LOFI_MERGE_STATISTICS_H */
