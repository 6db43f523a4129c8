// SPDX-License-Identifier: MIT
//
// The factor of a mirrored reduction. It goes onto the inputs, before the reduction: DDP divides
// by K * L, so that scaling by K first gives exactly the g / L that the node alone would reduce
// (K a power of two), and the inner Work is returned as it is. NCCL and the communicator of
// liblofi scale while they sum.
#pragma once

#include <optional>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "inner.hpp"
#include "lofi.h"
#include "reduction.hpp"

namespace lofi {

// The memory that takes scaled inputs where the inner backend does not scale them itself.
enum class Write : uint8_t { in_place, to_copies };

// Gives the communicator's reduction, with the plan's factor in it; none if gloo is to reduce.
// Tensors that the communicator does not scale are adjusted, below autograd, so that leaves that
// need gradients pass.
std::optional<Reduction> adjusted_reduction(const lofi_plan &plan, std::vector<at::Tensor> &tensors,
                                            const c10d::ReduceOp &op, bool coalesced,
                                            Write write = Write::in_place);

// The tensor times the factor of a PREMUL_SUM.
at::Tensor multiplied(const at::Tensor &tensor, const c10d::ReduceOp &op);

// Gives the operation that NCCL or gloo is to be given; adjusts the tensors if it does not scale.
c10d::ReduceOp adjusted_op(const lofi_plan &plan, std::vector<at::Tensor> &tensors,
                           const c10d::ReduceOp &op, const Inner &inner,
                           Write write = Write::in_place);

} // namespace lofi
