// SPDX-License-Identifier: MIT
//
// The gathers of BackendComm.
#include "comm_call.hpp"

namespace lofi {
namespace {

// The slot of `rank` in `whole`, whose slots are like `part`, begins here.
const void *own_slot(const at::Tensor &whole, const at::Tensor &part, int rank)
{
    return static_cast<const char *>(whole.const_data_ptr()) + rank * part.nbytes();
}

} // namespace

void BackendComm::add_gather(Call &call, const Tensors &outputs, const at::Tensor &input,
                             std::chrono::milliseconds timeout) const
{
    auto &task = call.tasks.emplace_back(task_of(LOFI_ALL_GATHER, timeout));
    task.count = input.nbytes();
    task.in = call.read(input, outputs, outputs[rank_].const_data_ptr());
    task.out_list = call.outputs_of(outputs);
}

void BackendComm::add_gather(Call &call, const at::Tensor &output, const at::Tensor &input,
                             std::chrono::milliseconds timeout) const
{
    auto &task = call.tasks.emplace_back(task_of(LOFI_ALL_GATHER, timeout));
    task.count = input.nbytes();
    task.in = call.read(input, output, own_slot(output, input, rank_));
    task.out = call.write(output);
}

BackendComm::WorkPtr BackendComm::allgather(TensorLists &outputs, Tensors &inputs,
                                            const c10d::AllgatherOptions &opts)
{
    if (inputs.size() != 1 || outputs.size() != 1 ||
        outputs[0].size() != static_cast<size_t>(size_) || !moves(inputs[0]) ||
        !are_like(inputs[0], outputs[0])) {
        return gloo_->allgather(outputs, inputs, opts);
    }
    Call call{c10d::OpType::ALLGATHER, opts.asyncOp, inputs, {}, outputs};
    add_gather(call, outputs[0], inputs[0], opts.timeout);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::LOFI_ALL_GATHER_SINGLE(at::Tensor &output, at::Tensor &input,
                                                         const c10d::AllgatherOptions &opts)
{
    if (!is_multiple(output, input, size_) || !moves(input)) {
        return gloo_->LOFI_ALL_GATHER_SINGLE(output, input, opts);
    }
    Call call{c10d::OpType::ALLGATHER, opts.asyncOp, input, {}, {slots_of(output, size_)}};
    add_gather(call, output, input, opts.timeout);
    return issue(call);
}

// outputs[r][i] is what rank r gave as inputs[i].
BackendComm::WorkPtr BackendComm::allgather_coalesced(TensorLists &outputs, Tensors &inputs,
                                                      const c10d::AllgatherOptions &opts)
{
    bool all = outputs.size() == static_cast<size_t>(size_) && !inputs.empty();
    for (size_t rank = 0; all && rank < outputs.size(); ++rank)
        all = outputs[rank].size() == inputs.size();
    TensorLists columns(inputs.size());
    for (size_t i = 0; all && i < inputs.size(); ++i) {
        for (const auto &list : outputs)
            columns[i].push_back(list[i]);
        all = moves(inputs[i]) && inputs[i].scalar_type() == inputs[0].scalar_type() &&
              are_like(inputs[i], columns[i]);
    }
    if (!all) return gloo_->allgather_coalesced(outputs, inputs, opts);
    Call call{c10d::OpType::ALLGATHER_COALESCED, opts.asyncOp, inputs, {}, outputs};
    for (size_t i = 0; i < inputs.size(); ++i)
        add_gather(call, columns[i], inputs[i], opts.timeout);
    return issue(call);
}

BackendComm::WorkPtr
BackendComm::LOFI_ALL_GATHER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                              const c10d::AllgatherOptions &opts)
{
    bool all = outputs.size() == inputs.size() && !inputs.empty();
    for (size_t i = 0; all && i < inputs.size(); ++i)
        all = is_multiple(outputs[i], inputs[i], size_) && moves(inputs[i]);
    if (!all) return gloo_->LOFI_ALL_GATHER_SINGLE_COALESCED(outputs, inputs, opts);
    TensorLists results(size_);
    for (const auto &output : outputs) {
        const auto slots = slots_of(output, size_);
        for (int rank = 0; rank < size_; ++rank)
            results[rank].push_back(slots[rank]);
    }
    Call call{c10d::OpType::ALLGATHER_COALESCED, opts.asyncOp, inputs, {}, std::move(results)};
    for (size_t i = 0; i < inputs.size(); ++i)
        add_gather(call, outputs[i], inputs[i], opts.timeout);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::gather(TensorLists &outputs, Tensors &inputs,
                                         const c10d::GatherOptions &opts)
{
    const bool at_root = rank_ == opts.rootRank;
    bool fits = is_root(opts.rootRank) && inputs.size() == 1 && moves(inputs[0]) &&
                outputs.size() == (at_root ? 1 : 0);
    if (fits && at_root) {
        fits = outputs[0].size() == static_cast<size_t>(size_) && are_like(inputs[0], outputs[0]);
    }
    if (!fits) return gloo_->gather(outputs, inputs, opts);
    Call call{c10d::OpType::GATHER, opts.asyncOp, inputs, {}, outputs};
    auto &task = call.tasks.emplace_back(task_of(LOFI_GATHER, opts.timeout));
    task.root = static_cast<int>(opts.rootRank);
    task.count = inputs[0].nbytes();
    if (at_root) {
        task.in = call.read(inputs[0], outputs[0], outputs[0][rank_].const_data_ptr());
        task.out_list = call.outputs_of(outputs[0]);
    } else {
        task.in = call.read(inputs[0]);
    }
    return issue(call);
}

#ifdef LOFI_HAS_GATHER_SINGLE
BackendComm::WorkPtr BackendComm::gather_single(at::Tensor &output, at::Tensor &input,
                                                const c10d::GatherOptions &opts)
{
    const bool at_root = rank_ == opts.rootRank;
    if (!is_root(opts.rootRank) || !moves(input) ||
        (at_root && !is_multiple(output, input, size_))) {
        return gloo_->gather_single(output, input, opts);
    }
    Call call{c10d::OpType::GATHER, opts.asyncOp, input, {}, {}};
    auto &task = call.tasks.emplace_back(task_of(LOFI_GATHER, opts.timeout));
    task.root = static_cast<int>(opts.rootRank);
    task.count = input.nbytes();
    if (at_root) {
        task.in = call.read(input, output, own_slot(output, input, rank_));
        call.results = {{output}};
        task.out = call.write(output);
    } else {
        task.in = call.read(input);
    }
    return issue(call);
}
#endif

} // namespace lofi
