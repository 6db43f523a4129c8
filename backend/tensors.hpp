// SPDX-License-Identifier: MIT
//
// How tensors lie in memory, and which of them fit together in a collective of the communicator.
#pragma once

#include <vector>

#include <ATen/ATen.h>

namespace lofi {

inline bool on_cpu(const at::Tensor &tensor)
{
    return tensor.is_cpu() && tensor.layout() == at::kStrided;
}

// Its elements fill one block of memory, in whatever order: gloo passes such a block as it is.
inline bool is_block(const at::Tensor &tensor)
{
    return on_cpu(tensor) && tensor.is_non_overlapping_and_dense();
}

// Memory from elsewhere (torch.frombuffer) may begin in the middle of an element.
inline bool is_aligned(const at::Tensor &tensor)
{
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % tensor.itemsize() == 0;
}

inline bool is_plain(const at::Tensor &tensor)
{
    return tensor.is_contiguous() && is_aligned(tensor);
}

// Exact for dense tensors; a strided one is taken to fill all from its first to its last element.
bool overlap(const at::Tensor &a, const at::Tensor &b);

// The communicator can copy it: its dtype is one that gloo passes on, too.
bool moves(const at::Tensor &tensor);

bool are_like(const at::Tensor &one, const at::Tensor &other);
bool are_like(const at::Tensor &one, const std::vector<at::Tensor> &others);

// `whole` is `part`, `count` times along the first dimension.
bool is_multiple(const at::Tensor &whole, const at::Tensor &part, int count);

// `whole` cut into `count` parts along the first dimension.
std::vector<at::Tensor> slots_of(const at::Tensor &whole, int count);

} // namespace lofi
