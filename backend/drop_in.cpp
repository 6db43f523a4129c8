// SPDX-License-Identifier: MIT
#include "drop_in.hpp"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "adjust.hpp"

namespace lofi {
namespace {

bool is_float8(const at::Tensor &tensor)
{
    return on_cpu(tensor) && tensor.element_size() == 1 && at::isFloatingType(tensor.scalar_type());
}

template <typename Item, typename Function>
std::vector<Item> each(const std::vector<Item> &items, Function function)
{
    std::vector<Item> made;
    made.reserve(items.size());
    for (const auto &item : items)
        made.push_back(function(item));
    return made;
}

} // namespace

Detour::Detour(Kind kind, const c10d::ReduceOp &given, int size)
    : kind_(kind), given_(given),
      op_(kind == Kind::wide ? given : c10d::ReduceOp(c10d::ReduceOp::SUM)), size_(size)
{
}

std::optional<Detour> Detour::of(const at::Tensor &sample, const c10d::ReduceOp &op, int size,
                                 bool scales)
{
    if (is_float8(sample)) return Detour(Kind::wide, op, size);
    const auto type = sample.scalar_type();
    if (op.op_ == c10d::ReduceOp::AVG && at::isIntegralType(type, /*includeBool=*/false)) {
        return Detour(Kind::quotient, op, size);
    }
    const bool is_scalable = at::isFloatingType(type) || at::isComplexType(type);
    if (op.op_ == c10d::ReduceOp::PREMUL_SUM && is_scalable && !scales) {
        return Detour(Kind::product, op, size);
    }
    return std::nullopt;
}

std::vector<at::Tensor> Detour::inputs(const std::vector<at::Tensor> &given) const
{
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    switch (kind_) {
    case Kind::wide:
        return each(given, [](const auto &tensor) { return tensor.to(at::kFloat); });
    case Kind::product:
        return each(given, [this](const auto &tensor) { return multiplied(tensor, given_); });
    case Kind::quotient:
        break;
    }
    return given;
}

TensorLists Detour::inputs(const TensorLists &given) const
{
    return each(given, [this](const auto &list) { return inputs(list); });
}

std::vector<at::Tensor> Detour::outputs(const std::vector<at::Tensor> &given) const
{
    if (kind_ != Kind::wide) return given;
    return each(given, [](const auto &tensor) {
        return at::empty(tensor.sizes(), tensor.options().dtype(at::kFloat));
    });
}

void Detour::finish(const std::vector<at::Tensor> &results,
                    const std::vector<at::Tensor> &outputs) const
{
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (size_t i = 0; i < outputs.size(); ++i) {
        auto output = outputs[i];
        if (kind_ == Kind::quotient)
            output.div_(size_, "trunc");
        else if (!output.is_same(results[i]))
            output.copy_(results[i]);
    }
}

bool are_uneven(const std::vector<at::Tensor> &tensors)
{
    return !tensors.empty() && std::any_of(tensors.begin(), tensors.end(), [&](const auto &tensor) {
        return on_cpu(tensor) && tensor.numel() != tensors.front().numel();
    });
}

int64_t longest_of(const std::vector<at::Tensor> &tensors)
{
    int64_t longest = 0;
    for (const auto &tensor : tensors)
        longest = std::max(longest, tensor.numel());
    return longest;
}

at::Tensor pad(const at::Tensor &tensor, int64_t length)
{
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto row = at::zeros({length}, tensor.options());
    row.narrow(0, 0, tensor.numel()).copy_(tensor.reshape({-1}));
    return row;
}

void unpad(const at::Tensor &row, const at::Tensor &output)
{
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    output.copy_(row.narrow(0, 0, output.numel()).view(output.sizes()));
}

bool needs_view(const at::Tensor &tensor)
{
    return on_cpu(tensor) && (is_float8(tensor) || tensor.is_complex());
}

bool need_views(const std::vector<at::Tensor> &tensors)
{
    return !tensors.empty() && needs_view(tensors.front());
}

at::Tensor as_view(const at::Tensor &tensor)
{
    if (!needs_view(tensor)) return tensor;
    return tensor.is_complex() ? at::view_as_real(tensor) : tensor.view(at::kByte);
}

std::vector<at::Tensor> as_views(const std::vector<at::Tensor> &tensors)
{
    return each(tensors, as_view);
}

TensorLists as_views(const TensorLists &lists)
{
    return each(lists, [](const auto &list) { return as_views(list); });
}

} // namespace lofi
