// SPDX-License-Identifier: MIT
//
// Tensors on the CPU that NCCL would take on a GPU, and gloo refuses. Libraries work around gloo by its
// name; lofi has another one, so it takes them.
#pragma once

#include <optional>
#include <vector>

#include <torch/csrc/distributed/c10d/Types.hpp>

#include "tensors.hpp"

namespace lofi {

using TensorLists = std::vector<std::vector<at::Tensor>>;

// A reduction by way of one that gloo knows: floats of 8 bits are reduced as float32 and rounded
// once; the mean of integers is their sum, divided, and rounded towards zero; PREMUL_SUM is the sum
// of inputs that were multiplied. It never writes to inputs that are not outputs as well.
class Detour {
  public:
    // For tensors on the CPU like `sample`; none if the operation needs no detour. `size`: members
    // of the group. `scales`: what reduces knows PREMUL_SUM.
    static std::optional<Detour> of(const at::Tensor &sample, const c10d::ReduceOp &op, int size,
                                    bool scales);

    // `options` with the operation that is to be done.
    template <typename Options>
    Options through(Options options) const
    {
        options.reduceOp = op_;
        return options;
    }
    // The tensors to reduce in place of the inputs: new ones, or the inputs themselves.
    std::vector<at::Tensor> inputs(const std::vector<at::Tensor> &given) const;
    TensorLists inputs(const TensorLists &given) const;
    // The tensors to receive results in place of the outputs, whose values do not matter.
    std::vector<at::Tensor> outputs(const std::vector<at::Tensor> &given) const;
    // What is left to do when `results` have arrived.
    void finish(const std::vector<at::Tensor> &results,
                const std::vector<at::Tensor> &outputs) const;

  private:
    enum class Kind : uint8_t { wide, quotient, product };
    Detour(Kind kind, const c10d::ReduceOp &given, int size);

    Kind kind_;
    c10d::ReduceOp given_, op_;
    int size_;
};

// Lists whose tensors differ in size: each is padded to the longest, as one row.
bool are_uneven(const std::vector<at::Tensor> &tensors);
int64_t longest_of(const std::vector<at::Tensor> &tensors);
at::Tensor pad(const at::Tensor &tensor, int64_t length);
void unpad(const at::Tensor &row, const at::Tensor &output);

// Views of other dtypes, for collectives that only move: bytes of floats of 8 bits, and the real
// pairs of complex numbers.
bool needs_view(const at::Tensor &tensor);
bool need_views(const std::vector<at::Tensor> &tensors);
at::Tensor as_view(const at::Tensor &tensor);
std::vector<at::Tensor> as_views(const std::vector<at::Tensor> &tensors);
TensorLists as_views(const TensorLists &lists);

} // namespace lofi
