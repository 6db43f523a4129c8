// SPDX-License-Identifier: MIT
//
// The reductions of BackendComm.
#include "check.hpp"
#include "comm_call.hpp"

namespace lofi {
namespace {

// gloo copies the result of these sums of booleans, and the copy makes every true a 1. A maximum
// gives the same.
void keep_truth(lofi_task &task, const at::Tensor &tensor)
{
    if (tensor.scalar_type() == at::kBool && task.op == LOFI_SUM) task.op = LOFI_MAX;
}

} // namespace

lofi_task BackendComm::task_of(lofi_collective collective, const Reduction &reduction,
                               std::chrono::milliseconds timeout) const
{
    auto task = task_of(collective, timeout);
    task.dtype = reduction.dtype;
    task.op = reduction.op;
    task.factor = reduction.factor;
    return task;
}

BackendComm::WorkPtr BackendComm::allreduce(Tensors &tensors, const c10d::AllreduceOptions &opts)
{
    return all_reduce(tensors, opts, reduction_of(tensors, opts.reduceOp, false));
}

BackendComm::WorkPtr BackendComm::allreduce_coalesced(Tensors &tensors,
                                                      const c10d::AllreduceCoalescedOptions &opts)
{
    return all_reduce_coalesced(tensors, opts, reduction_of(tensors, opts.reduceOp, true));
}

BackendComm::WorkPtr BackendComm::reduce(Tensors &tensors, const c10d::ReduceOptions &opts)
{
    return reduce_to_root(tensors, opts, reduction_of(tensors, opts.reduceOp, false));
}

BackendComm::WorkPtr BackendComm::all_reduce(Tensors &tensors, const c10d::AllreduceOptions &opts,
                                             const std::optional<Reduction> &reduction)
{
    if (!reduction) return gloo_->allreduce(tensors, opts);
    Call call{c10d::OpType::ALLREDUCE, opts.asyncOp, tensors, {}, {tensors}};
    auto &task = call.tasks.emplace_back(task_of(LOFI_ALL_REDUCE, *reduction, opts.timeout));
    task.count = tensors[0].numel();
    task.in = task.out = call.block(tensors[0]);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::all_reduce_coalesced(Tensors &tensors,
                                                       const c10d::AllreduceCoalescedOptions &opts,
                                                       const std::optional<Reduction> &reduction)
{
    if (!reduction) return gloo_->allreduce_coalesced(tensors, opts);
    Call call{c10d::OpType::ALLREDUCE_COALESCED, opts.asyncOp, tensors, {}, {tensors}};
    for (const auto &tensor : tensors) {
        auto &task = call.tasks.emplace_back(task_of(LOFI_ALL_REDUCE, *reduction, opts.timeout));
        keep_truth(task, tensor);
        task.count = tensor.numel();
        task.in = task.out = call.update(tensor);
    }
    return issue(call);
}

// Outside of the root nothing is written; gloo leaves partial sums there.
BackendComm::WorkPtr BackendComm::reduce_to_root(Tensors &tensors, const c10d::ReduceOptions &opts,
                                                 const std::optional<Reduction> &reduction)
{
    if (!is_root(opts.rootRank) || opts.rootTensor != 0 || !reduction) {
        return gloo_->reduce(tensors, opts);
    }
    Call call{c10d::OpType::REDUCE, opts.asyncOp, tensors, {}, {tensors}};
    auto &task = call.tasks.emplace_back(task_of(LOFI_REDUCE, *reduction, opts.timeout));
    task.root = static_cast<int>(opts.rootRank);
    task.count = tensors[0].numel();
    void *data = call.block(tensors[0]);
    task.in = data;
    if (rank_ == opts.rootRank) task.out = data;
    return issue(call);
}

BackendComm::WorkPtr BackendComm::reduce_scatter(Tensors &outputs, TensorLists &inputs,
                                                 const c10d::ReduceScatterOptions &opts)
{
    std::optional<Reduction> reduction;
    if (outputs.size() == 1 && inputs.size() == 1 &&
        inputs[0].size() == static_cast<size_t>(size_) && on_cpu(outputs[0]) &&
        are_like(outputs[0], inputs[0])) {
        reduction = reduction_of(inputs[0], opts.reduceOp, true);
    }
    if (!reduction) {
        return gloo_->reduce_scatter(outputs, inputs, opts);
    }
    Call call{c10d::OpType::REDUCE_SCATTER, opts.asyncOp, inputs[0], {}, {outputs}};
    auto &task = call.tasks.emplace_back(task_of(LOFI_REDUCE_SCATTER, *reduction, opts.timeout));
    task.count = outputs[0].numel();
    task.in_list = call.inputs_of(inputs[0], outputs[0], rank_);
    task.out = call.write(outputs[0]);
    return issue(call);
}

std::optional<Reduction> BackendComm::scatter_of(const at::Tensor &output, const at::Tensor &input,
                                                 const c10d::ReduceOp &op) const
{
    if (!is_multiple(input, output, size_)) return std::nullopt;
    return reduction_of({input}, op, true);
}

void BackendComm::add_scatter(Call &call, const at::Tensor &output, const at::Tensor &input,
                              const Reduction &reduction, std::chrono::milliseconds timeout) const
{
    auto &task = call.tasks.emplace_back(task_of(LOFI_REDUCE_SCATTER, reduction, timeout));
    keep_truth(task, output);
    task.count = output.numel();
    task.in_list = call.inputs_of(slots_of(input, size_), output, rank_);
    task.out = call.write(output);
}

BackendComm::WorkPtr BackendComm::LOFI_REDUCE_SCATTER_SINGLE(at::Tensor &output, at::Tensor &input,
                                                             const c10d::ReduceScatterOptions &opts)
{
    const auto reduction = scatter_of(output, input, opts.reduceOp);
    if (!reduction) return gloo_->LOFI_REDUCE_SCATTER_SINGLE(output, input, opts);
    Call call{c10d::OpType::_REDUCE_SCATTER_BASE, opts.asyncOp, input, {}, {{output}}};
    add_scatter(call, output, input, *reduction, opts.timeout);
    return issue(call);
}

BackendComm::WorkPtr
BackendComm::LOFI_REDUCE_SCATTER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                                  const c10d::ReduceScatterOptions &opts)
{
    std::vector<Reduction> reductions;
    for (size_t i = 0; outputs.size() == inputs.size() && i < inputs.size(); ++i) {
        const auto reduction = scatter_of(outputs[i], inputs[i], opts.reduceOp);
        if (!reduction) break;
        reductions.push_back(*reduction);
    }
    if (inputs.empty() || reductions.size() != inputs.size()) {
        return gloo_->LOFI_REDUCE_SCATTER_SINGLE_COALESCED(outputs, inputs, opts);
    }
    Call call{c10d::OpType::_REDUCE_SCATTER_BASE, opts.asyncOp, inputs, {}, {outputs}};
    for (size_t i = 0; i < inputs.size(); ++i)
        add_scatter(call, outputs[i], inputs[i], reductions[i], opts.timeout);
    return issue(call);
}

} // namespace lofi
