// SPDX-License-Identifier: MIT
#include "adjust.hpp"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "backend_comm.hpp"
#include "torch_compat.hpp"

namespace lofi {
namespace {

// The dtypes for which NCCL can multiply while it sums.
bool premultiplies(const at::Tensor &tensor)
{
    const auto type = tensor.scalar_type();
    return tensor.is_cuda() && tensor.layout() == at::kStrided &&
           (type == at::kFloat || type == at::kDouble || type == at::kHalf ||
            type == at::kBFloat16);
}

c10d::ReduceOp premultiplied(const lofi_plan &plan, const c10d::ReduceOp &op)
{
    const double factor = static_cast<double>(plan.factor);
    if (op.op_ != c10d::ReduceOp::PREMUL_SUM) return LOFI_MAKE_PREMUL_SUM(factor);
    const auto *given = static_cast<const LOFI_PREMUL_SUPPLEMENT *>(op.supplement_.get());
    if (given->tensor_factor.defined()) return LOFI_MAKE_PREMUL_SUM(given->tensor_factor * factor);
    return LOFI_MAKE_PREMUL_SUM(given->double_factor * factor);
}

void adjust_values(const lofi_plan &plan, at::Tensor values)
{
    switch (plan.adjust) {
    case LOFI_ADJUST_SCALE:
        values.mul_(plan.factor);
        break;
    case LOFI_ADJUST_POWER:
        // A product of booleans is a logical and: more copies change nothing.
        if (values.scalar_type() != at::kBool) values.pow_(plan.factor);
        break;
    case LOFI_ADJUST_ZERO:
        values.zero_();
        break;
    case LOFI_ADJUST_NONE:
        break;
    }
}

} // namespace

std::optional<c10d::ReduceOp> scaled_in_sum(const lofi_plan &plan,
                                            const std::vector<at::Tensor> &tensors,
                                            const c10d::ReduceOp &op, const c10d::Backend &inner,
                                            bool coalesced)
{
    if (plan.adjust != LOFI_ADJUST_SCALE || tensors.empty()) return std::nullopt;
    const bool is_comm = dynamic_cast<const BackendComm *>(&inner) != nullptr;
    if (!is_comm && !std::all_of(tensors.begin(), tensors.end(), premultiplies)) {
        return std::nullopt;
    }
    auto scaled = premultiplied(plan, op);
    if (is_comm && !BackendComm::reduces(tensors, scaled, coalesced)) return std::nullopt;
    return scaled;
}

void adjust_in_place(const lofi_plan &plan, std::vector<at::Tensor> &tensors)
{
    if (plan.adjust == LOFI_ADJUST_NONE) return;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (const auto &tensor : tensors) {
        adjust_values(plan, tensor.is_sparse() ? tensor._values() : tensor);
    }
}

} // namespace lofi
