// SPDX-License-Identifier: MIT
//
// Tensors on the CPU that NCCL would take on a GPU, and gloo refuses. Libraries work around gloo by its
// name; lofi has another one, so it takes them.
#pragma once

#include <torch/csrc/distributed/c10d/Types.hpp>

#include "tensors.hpp"

namespace lofi {

// The mean of integers. NCCL divides their sum, and rounds towards zero.
bool is_integer_mean(const std::vector<at::Tensor> &tensors, const c10d::ReduceOp &op);
void divide(const std::vector<at::Tensor> &tensors, int64_t by);

// Floats of 8 bits, which gloo does not even move.
bool is_float8(const at::Tensor &tensor);
bool are_float8(const std::vector<at::Tensor> &tensors);
at::Tensor as_bytes(const at::Tensor &tensor);
std::vector<at::Tensor> as_bytes(const std::vector<at::Tensor> &tensors);
std::vector<std::vector<at::Tensor>> as_bytes(const std::vector<std::vector<at::Tensor>> &lists);

} // namespace lofi
