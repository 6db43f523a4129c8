/* SPDX-License-Identifier: MIT */
/*
 * Chooses the kernels for this CPU.
 *
 * Entries are tried from the best to the scalar one, which runs everywhere. A table of functions
 * and not names redefined for missing instructions: what runs can be found with grep, and a test
 * can go through all entries. CMakeLists.txt says which of them are built.
 */
#include "kernels/kernels.h"

#include <stdatomic.h>

#ifdef LOFI_KERNELS_X86
#include <cpuid.h>
#endif

struct entry {
    const struct lofi__kernels *kernels;
    int (*is_supported)(void);
};

static int always(void)
{
    return 1;
}

#ifdef LOFI_KERNELS_X86
/* The builtin also asks whether the operating system saves the registers. */
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int has_avx2(void)
{
    unsigned a, b, c, d;
    /* Not every compiler's builtin knows F16C. */
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static const struct entry entries[] = {
#ifdef LOFI_KERNELS_X86
    {&lofi__kernels_avx512, has_avx512},
    {&lofi__kernels_avx2, has_avx2},
#endif
#ifdef LOFI_KERNELS_NEON
    {&lofi__kernels_neon, always},
#endif
    {&lofi__kernels_scalar, always},
};

const struct lofi__kernels *lofi__kernels_at(int index)
{
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++)
        if (entries[i].is_supported() && index-- == 0) return entries[i].kernels;
    return NULL;
}

const struct lofi__kernels *lofi__kernels_get(void)
{
    /* Kept, because in a virtual machine cpuid may take microseconds. */
    static const struct lofi__kernels *_Atomic chosen;
    const struct lofi__kernels *kernels = atomic_load_explicit(&chosen, memory_order_relaxed);

    if (kernels == NULL) {
        kernels = lofi__kernels_at(0);
        atomic_store_explicit(&chosen, kernels, memory_order_relaxed);
    }
    return kernels;
}
