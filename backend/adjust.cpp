// SPDX-License-Identifier: MIT
#include "adjust.hpp"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "backend_comm.hpp"
#include "torch_compat.hpp"

namespace lofi {
namespace {

// What NCCL can multiply while it sums.
bool premultiplies(const at::Tensor &tensor)
{
    const auto type = tensor.scalar_type();
    return tensor.layout() == at::kStrided && (type == at::kFloat || type == at::kDouble ||
                                               type == at::kHalf || type == at::kBFloat16);
}

// The factor as torch must be given it, for NCCL to read it.
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
bool forgets_elements(const c10d::Backend &inner)
{
    return inner.getBackendName() == "nccl" && inner.getSize() == 1;
}

// What a PREMUL_SUM is given; null for other operations.
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

} // namespace

std::optional<c10d::ReduceOp> scaled_in_sum(const lofi_plan &plan,
                                            const std::vector<at::Tensor> &tensors,
                                            const c10d::ReduceOp &op, const c10d::Backend &inner,
                                            bool coalesced)
{
    const auto *given = supplement_of(op);
    if (plan.adjust != LOFI_ADJUST_SCALE || tensors.empty()) return std::nullopt;
    // A factor in a tensor stays as it is, and where it is: NCCL reads it later.
    if (given != nullptr && given->tensor_factor.defined()) return std::nullopt;

    const double factor =
        static_cast<double>(plan.factor) * (given != nullptr ? given->double_factor : 1.0);
    if (dynamic_cast<const BackendComm *>(&inner) != nullptr) {
        auto scaled = LOFI_MAKE_PREMUL_SUM(factor);
        if (BackendComm::reduces(tensors, scaled, coalesced)) return scaled;
    } else if (inner.getBackendName() == "nccl" && !forgets_elements(inner) &&
               std::all_of(tensors.begin(), tensors.end(), premultiplies)) {
        return LOFI_MAKE_PREMUL_SUM(as_read(factor, tensors.front().scalar_type()));
    }
    return std::nullopt;
}

void adjust_in_place(const lofi_plan &plan, std::vector<at::Tensor> &tensors)
{
    if (plan.adjust == LOFI_ADJUST_NONE || tensors.empty()) return;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::vector<at::Tensor> values;
    for (const auto &tensor : tensors)
        values.push_back(tensor.is_sparse() ? tensor._values() : tensor);
    adjust_values(plan, values);
}

c10d::ReduceOp premultiply(std::vector<at::Tensor> &tensors, const c10d::ReduceOp &op,
                           const c10d::Backend &inner)
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

} // namespace lofi
