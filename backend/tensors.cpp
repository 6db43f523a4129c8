// SPDX-License-Identifier: MIT
#include "tensors.hpp"

#include <algorithm>
#include <functional>

#include "convert.hpp"

namespace lofi {

bool overlap(const at::Tensor &a, const at::Tensor &b)
{
    if (a.numel() == 0 || b.numel() == 0) return false;
    const auto end = [](const at::Tensor &tensor) {
        int64_t last = 0;
        for (int64_t i = 0; i < tensor.dim(); ++i)
            last += (tensor.size(i) - 1) * tensor.stride(i);
        return static_cast<const char *>(tensor.const_data_ptr()) + (last + 1) * tensor.itemsize();
    };
    const std::less<const char *> before;
    return before(static_cast<const char *>(a.const_data_ptr()), end(b)) &&
           before(static_cast<const char *>(b.const_data_ptr()), end(a));
}

bool moves(const at::Tensor &tensor)
{
    return on_cpu(tensor) && arithmetic_of(tensor.scalar_type());
}

bool are_like(const at::Tensor &one, const at::Tensor &other)
{
    return on_cpu(other) && one.scalar_type() == other.scalar_type() &&
           one.sizes() == other.sizes();
}

bool are_like(const at::Tensor &one, const std::vector<at::Tensor> &others)
{
    return std::all_of(others.begin(), others.end(),
                       [&](const at::Tensor &other) { return are_like(one, other); });
}

bool is_multiple(const at::Tensor &whole, const at::Tensor &part, int count)
{
    return on_cpu(whole) && on_cpu(part) && whole.scalar_type() == part.scalar_type() &&
           whole.dim() > 0 && whole.dim() == part.dim() && whole.size(0) == part.size(0) * count &&
           whole.sizes().slice(1) == part.sizes().slice(1);
}

std::vector<at::Tensor> slots_of(const at::Tensor &whole, int count)
{
    std::vector<at::Tensor> slots;
    const int64_t each = whole.size(0) / count;
    for (int i = 0; i < count; ++i)
        slots.push_back(whole.narrow(0, i * each, each));
    return slots;
}

} // namespace lofi
