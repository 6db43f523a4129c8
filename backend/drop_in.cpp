// SPDX-License-Identifier: MIT
#include "drop_in.hpp"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

namespace lofi {

bool is_integer_mean(const std::vector<at::Tensor> &tensors, const c10d::ReduceOp &op)
{
    return op.op_ == c10d::ReduceOp::AVG && !tensors.empty() && on_cpu(tensors.front()) &&
           at::isIntegralType(tensors.front().scalar_type(), /*includeBool=*/false);
}

void divide(const std::vector<at::Tensor> &tensors, int64_t by)
{
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (auto tensor : tensors)
        tensor.div_(by, "trunc");
}

bool is_float8(const at::Tensor &tensor)
{
    return on_cpu(tensor) && tensor.element_size() == 1 && at::isFloatingType(tensor.scalar_type());
}

bool are_float8(const std::vector<at::Tensor> &tensors)
{
    return !tensors.empty() && is_float8(tensors.front());
}

at::Tensor as_bytes(const at::Tensor &tensor)
{
    return is_float8(tensor) ? tensor.view(at::kByte) : tensor;
}

std::vector<at::Tensor> as_bytes(const std::vector<at::Tensor> &tensors)
{
    std::vector<at::Tensor> bytes;
    bytes.reserve(tensors.size());
    for (const auto &tensor : tensors)
        bytes.push_back(as_bytes(tensor));
    return bytes;
}

std::vector<std::vector<at::Tensor>> as_bytes(const std::vector<std::vector<at::Tensor>> &lists)
{
    std::vector<std::vector<at::Tensor>> bytes;
    bytes.reserve(lists.size());
    for (const auto &list : lists)
        bytes.push_back(as_bytes(list));
    return bytes;
}

} // namespace lofi
