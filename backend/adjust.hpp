// SPDX-License-Identifier: MIT
//
// The factor of a mirrored reduction. It goes onto the inputs, before the reduction: DDP divides
// by K * L, so that scaling by K first gives exactly the g / L that the node alone would reduce
// (K a power of two), and the inner Work is returned as it is. NCCL scales while it sums.
#pragma once

#include <torch/csrc/distributed/c10d/Types.hpp>

#include "lofi.h"

namespace lofi {

// Adjusts the tensors in place, below autograd, so that leaves that need gradients pass. Returns
// the operation to reduce with.
c10d::ReduceOp adjust(const lofi_plan &plan, std::vector<at::Tensor> &tensors,
                      const c10d::ReduceOp &op);

} // namespace lofi
