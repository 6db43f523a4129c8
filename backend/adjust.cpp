// SPDX-License-Identifier: MIT
#include "adjust.hpp"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "torch_compat.hpp"

namespace lofi {
namespace {

// NCCL can multiply it while it sums.
bool premultiplies(const at::Tensor &tensor)
{
    const auto type = tensor.scalar_type();
    return tensor.layout() == at::kStrided && (type == at::kFloat || type == at::kDouble ||
                                               type == at::kHalf || type == at::kBFloat16);
}

// torch must be given the factor in this form for NCCL to read it right.
double as_read(double factor, at::ScalarType type)
{
#ifdef LOFI_NCCL_READS_HALF_A_FACTOR
    if (type == at::kBFloat16) { // in both halves of the float
        const uint32_t half = c10::BFloat16(static_cast<float>(factor)).x;
        return c10::bit_cast<float>(half << 16 | half);
    }
#endif
    return factor;
}

// On a communicator of one rank NCCL before 2.29.7 multiplies all but a few of the last elements
// (NVIDIA/nccl#1950). Its sum launches nothing there, so that a kernel of our own costs as much.
bool forgets_elements(const Inner &inner)
{
    return inner.kind == Kind::nccl && inner->getSize() == 1;
}

// The factor of a PREMUL_SUM; null for other operations.
const LOFI_PREMUL_SUPPLEMENT *supplement_of(const c10d::ReduceOp &op)
{
    if (op.op_ != c10d::ReduceOp::PREMUL_SUM) return nullptr;
    return static_cast<const LOFI_PREMUL_SUPPLEMENT *>(op.supplement_.get());
}

// For all tensors at once: on CUDA that is one kernel.
void adjust_values(const lofi_plan &plan, const std::vector<at::Tensor> &values)
{
    switch (plan.adjust) {
    case LOFI_ADJUST_SCALE:
        at::_foreach_mul_(values, plan.factor);
        break;
    case LOFI_ADJUST_POWER:
        // A product of booleans is a logical and: more copies change nothing.
        if (values.front().scalar_type() != at::kBool) at::_foreach_pow_(values, plan.factor);
        break;
    case LOFI_ADJUST_ZERO:
        at::_foreach_zero_(values);
        break;
    case LOFI_ADJUST_NONE:
        break;
    }
}

void adjust(const lofi_plan &plan, std::vector<at::Tensor> &tensors, Write write)
{
    if (plan.adjust == LOFI_ADJUST_NONE || tensors.empty()) return;
    if (write == Write::to_copies) {
        for (auto &tensor : tensors)
            tensor = tensor.clone();
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::vector<at::Tensor> values;
    for (const auto &tensor : tensors)
        values.push_back(tensor.is_sparse() ? tensor._values() : tensor);
    adjust_values(plan, values);
}

// The factor by which a sum that scales can multiply; none if the inputs are to be multiplied. A
// factor in a tensor stays as it is, and where it is: NCCL reads it later.
std::optional<double> factor_in_sum(const lofi_plan &plan, const c10d::ReduceOp &op)
{
    if (plan.adjust != LOFI_ADJUST_SCALE) return std::nullopt;
    const auto *given = supplement_of(op);
    if (given == nullptr) return plan.factor;
    if (given->tensor_factor.defined()) return std::nullopt;
    return static_cast<double>(plan.factor) * given->double_factor;
}

// Multiplies by the factor of a PREMUL_SUM where NCCL would do it wrong; returns what is left to
// do.
c10d::ReduceOp premultiply(std::vector<at::Tensor> &tensors, const c10d::ReduceOp &op,
                           const Inner &inner)
{
    const auto *given = supplement_of(op);
    if (given == nullptr || !forgets_elements(inner)) return op;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (auto &tensor : tensors) {
        if (given->tensor_factor.defined())
            tensor.mul_(given->tensor_factor);
        else
            tensor.mul_(given->double_factor);
    }
    return c10d::ReduceOp::SUM;
}

} // namespace

at::Tensor multiplied(const at::Tensor &tensor, const c10d::ReduceOp &op)
{
    const auto *given = supplement_of(op);
    if (given->tensor_factor.defined()) return tensor.mul(given->tensor_factor);
    return tensor.mul(given->double_factor);
}

std::optional<Reduction> adjusted_reduction(const lofi_plan &plan, std::vector<at::Tensor> &tensors,
                                            const c10d::ReduceOp &op, bool coalesced, Write write)
{
    auto reduction = reduction_of(tensors, op, coalesced);
    const auto factor = factor_in_sum(plan, op);
    if (reduction && factor && tensors.front().scalar_type() != at::kBool) {
        reduction->op = LOFI_PREMUL_SUM;
        reduction->factor = *factor;
    } else {
        adjust(plan, tensors, write);
    }
    return reduction;
}

c10d::ReduceOp adjusted_op(const lofi_plan &plan, std::vector<at::Tensor> &tensors,
                           const c10d::ReduceOp &op, const Inner &inner, Write write)
{
    const auto factor = factor_in_sum(plan, op);
    if (factor && inner.kind == Kind::nccl && !tensors.empty() && !forgets_elements(inner) &&
        std::all_of(tensors.begin(), tensors.end(), premultiplies)) {
        return LOFI_MAKE_PREMUL_SUM(as_read(*factor, tensors.front().scalar_type()));
    }
    adjust(plan, tensors, write);
    return plan.action == LOFI_DO_LOCAL ? premultiply(tensors, op, inner) : op;
}

} // namespace lofi
