/* SPDX-License-Identifier: MIT */
/* The kernels as nvcc compiled them: machine code for all major GPUs, and PTX for later ones. */
#ifndef LOFI_CUDA_IMAGE_H
#define LOFI_CUDA_IMAGE_H

/* NULL if the library was built without them. Static. */
const void *lofi__cuda_image(void);

#endif /* LOFI_CUDA_IMAGE_H */
