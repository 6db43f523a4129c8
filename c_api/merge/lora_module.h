/* SPDX-License-Identifier: MIT */
/* One module of an average of products, computed by one thread with its own buffers. */
#ifndef LOFI_MERGE_LORA_MODULE_H
#define LOFI_MERGE_LORA_MODULE_H

#include "kernels/kernels.h"
#include "merge/findings.h"
#include "merge/lora.h"

/* The buffers of one thread, for steps of so many numbers; what they are for is borrowed. */
struct lofi__stepper {
    const struct lofi__plan *plan;
    const struct lofi__stream_options *stream;
    const struct lofi__kernels *kernels;
    const struct lofi__job *const *jobs; /* by their order */
    size_t count;
    char *raw, *found;
    double *numbers;
};

/* Makes the buffers; the borrowed fields are set before. Clear the stepper also after an error. */
lofi_status lofi__stepper_create(struct lofi__stepper *stepper);
void lofi__stepper_clear(struct lofi__stepper *stepper);

/* The rank of the factors of all sources that count. */
uint64_t lofi__lora_whole_rank(const struct lofi__plan *plan, const struct lofi__lora_module *m);

/* Computes a module and writes it, or compares. `square` and `lost` get the squares of the Frobenius
 * norms of its product, and of what the output's lacks. */
lofi_status lofi__lora_module_run(const struct lofi__stepper *stepper,
                                  const struct lofi__lora_module *m, double *square, double *lost);

#endif /* LOFI_MERGE_LORA_MODULE_H */
