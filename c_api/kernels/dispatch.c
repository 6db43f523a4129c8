/* SPDX-License-Identifier: MIT */
/*
 * Chooses the kernels for this CPU.
 *
 * Entries are tried from the best to the scalar one, which runs everywhere. A table of functions
 * and not names redefined for missing instructions: what runs can be found with grep, and a test
 * can go through all entries.
 */
#include "kernels/kernels.h"

struct entry {
    const struct lofi__kernels *kernels;
    int (*is_supported)(void);
};

static int always(void)
{
    return 1;
}

static const struct entry entries[] = {
    {&lofi__kernels_scalar, always},
};

const struct lofi__kernels *lofi__kernels_get(void)
{
    size_t i = 0;
    while (!entries[i].is_supported())
        i++; /* the last entry always is */
    return entries[i].kernels;
}
