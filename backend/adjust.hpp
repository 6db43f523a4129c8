// SPDX-License-Identifier: MIT
//
// The factor of a mirrored reduction. It goes onto the inputs, before the reduction: DDP divides
// by K * L, so that scaling by K first gives exactly the g / L that the node alone would reduce
// (K a power of two), and the inner Work is returned as it is. NCCL and the communicator of
// liblofi scale while they sum.
#pragma once

#include <optional>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "lofi.h"

namespace lofi {

// The operation by which the inner backend scales the inputs while it sums them; none if it can't.
std::optional<c10d::ReduceOp> scaled_in_sum(const lofi_plan &plan,
                                            const std::vector<at::Tensor> &tensors,
                                            const c10d::ReduceOp &op, const c10d::Backend &inner,
                                            bool coalesced);

// Else: adjusts the tensors, below autograd, so that leaves that need gradients pass.
void adjust_in_place(const lofi_plan &plan, std::vector<at::Tensor> &tensors);

// Multiplies by the factor of a PREMUL_SUM where the inner backend would do it wrong; returns the
// operation that is left.
c10d::ReduceOp premultiply(std::vector<at::Tensor> &tensors, const c10d::ReduceOp &op,
                           const c10d::Backend &inner);

} // namespace lofi
