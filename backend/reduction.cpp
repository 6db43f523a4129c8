// SPDX-License-Identifier: MIT
#include "reduction.hpp"

#include "convert.hpp"
#include "tensors.hpp"
#include "torch_compat.hpp"

namespace lofi {
namespace {

// The factor of a PREMUL_SUM, if it has one.
std::optional<double> factor_of(const c10d::ReduceOp &op)
{
    const auto *given = static_cast<const LOFI_PREMUL_SUPPLEMENT *>(op.supplement_.get());
    if (given == nullptr) return std::nullopt;
    const auto &tensor = given->tensor_factor;
    if (!tensor.defined()) return given->double_factor;
    if (tensor.numel() != 1 || tensor.is_complex()) return std::nullopt;
    return tensor.item<double>();
}

std::optional<Reduction> reduction_of(at::ScalarType type, const c10d::ReduceOp &op)
{
    const auto dtype = arithmetic_of(type);
    if (!dtype) return std::nullopt;
    Reduction reduction{*dtype, op_of(op)};
    const bool is_float = at::isFloatingType(type);
    switch (reduction.op) {
    case LOFI_SUM:
    case LOFI_PRODUCT:
    case LOFI_MIN:
    case LOFI_MAX:
        return reduction;
    case LOFI_BAND:
    case LOFI_BOR:
    case LOFI_BXOR:
        if (is_float) return std::nullopt;
        return reduction;
    case LOFI_AVG:
        if (!is_float) return std::nullopt;
        return reduction;
    case LOFI_PREMUL_SUM: {
        const auto factor = type == at::kBool ? std::nullopt : factor_of(op);
        if (!factor) return std::nullopt;
        reduction.factor = *factor;
        return reduction;
    }
    default:
        return std::nullopt;
    }
}

bool fit_together(const std::vector<at::Tensor> &tensors, bool coalesced)
{
    if (tensors.empty() || (tensors.size() > 1 && !coalesced)) return false;
    const auto type = tensors.front().scalar_type();
    return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor &tensor) {
        return tensor.scalar_type() == type && (coalesced ? on_cpu(tensor) : is_block(tensor));
    });
}

} // namespace

std::optional<Reduction> reduction_of(const std::vector<at::Tensor> &tensors,
                                      const c10d::ReduceOp &op, bool coalesced)
{
    if (!fit_together(tensors, coalesced)) return std::nullopt;
    return reduction_of(tensors.front().scalar_type(), op);
}

} // namespace lofi
