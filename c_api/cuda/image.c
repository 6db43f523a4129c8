/* SPDX-License-Identifier: MIT */
/* Embeds the file that nvcc wrote; the build names it, if there is one. */
#include "cuda/image.h"
#include "lofi.h"

#include <stddef.h>

#if defined(LOFI_CUDA_IMAGE)

extern const unsigned char lofi__cuda_image_bytes[];

__asm__(".pushsection .rodata\n"
        ".balign 16\n"
        ".hidden lofi__cuda_image_bytes\n"
        ".global lofi__cuda_image_bytes\n"
        "lofi__cuda_image_bytes:\n"
        ".incbin \"" LOFI_CUDA_IMAGE "\"\n"
        ".popsection\n");

const void *lofi__cuda_image(void)
{
    return lofi__cuda_image_bytes;
}

#else

const void *lofi__cuda_image(void)
{
    return NULL;
}

#endif

int lofi_cuda_is_built(void)
{
    return lofi__cuda_image() != NULL;
}
