// SPDX-License-Identifier: MIT
//
// The factor of a mirrored reduction. It goes onto the inputs, before the reduction: DDP divides
// by K * L, so that scaling by K first gives exactly the g / L that the node alone would reduce
// (K a power of two), and the inner Work is returned as it is. NCCL and the communicator of
// liblofi scale while they sum.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "lofi.h"

namespace lofi {

// Where the inputs are scaled: in place, or by the inner backend, which scales while it sums.
enum class Scaled : bool { in_place, in_sum };
Scaled where_scaled(const lofi_plan &plan, const std::vector<at::Tensor> &tensors,
                    const c10d::ReduceOp &op, const c10d::Backend &inner, bool coalesced);

// Adjusts the tensors in place, below autograd, so that leaves that need gradients pass; or not at
// all. Returns the operation to reduce with.
c10d::ReduceOp adjust(const lofi_plan &plan, std::vector<at::Tensor> &tensors,
                      const c10d::ReduceOp &op, Scaled where);

} // namespace lofi
