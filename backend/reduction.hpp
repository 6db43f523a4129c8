// SPDX-License-Identifier: MIT
//
// Which reductions liblofi's communicator computes: those that gloo computes, and PREMUL_SUM, which
// gloo refuses. The answer is worked out once for a call, and depends only on what is the same on
// all ranks of a correct program.
#pragma once

#include <optional>
#include <vector>

#include <torch/csrc/distributed/c10d/Types.hpp>

#include "lofi.h"

namespace lofi {

struct Reduction {
    lofi_dtype dtype;
    lofi_op op;
    double factor = 1.0;
};

// How all_reduce and reduce of these tensors run on the communicator; none: gloo runs them.
// `coalesced`: the call may have several tensors, of one dtype.
std::optional<Reduction> reduction_of(const std::vector<at::Tensor> &tensors,
                                      const c10d::ReduceOp &op, bool coalesced);

} // namespace lofi
