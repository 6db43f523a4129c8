/* SPDX-License-Identifier: MIT */
/*
 * The kernels of lofi_cuda_mean decide which thread of a grid does which part. mean.h has the work
 * of a part, and why its bits are those of lofi_mean; -fmad=false keeps products and sums apart.
 */
#include "cuda/mean.h"

#define KERNEL(name, dtype, bits, widen, narrow)                                                   \
    extern "C" __global__ void __launch_bounds__(LOFI__MEAN_BLOCK)                                 \
        lofi_mean_##name(const struct lofi__cuda_mean mean)                                        \
    {                                                                                              \
        const uint64_t block = blockDim.x;                                                         \
        lofi__mean_thread_##name(&mean, threadIdx.x + block * blockIdx.x, block * gridDim.x);      \
    }
LOFI__MEAN_MAP(KERNEL)
