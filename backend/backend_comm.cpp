// SPDX-License-Identifier: MIT
#include "backend_comm.hpp"

#include <algorithm>
#include <climits>

#include <ATen/core/LegacyTypeDispatch.h>
#include <unistd.h>

#include "check.hpp"
#include "comm_call.hpp"

namespace lofi {

BackendComm::BackendComm(std::shared_ptr<lofi_comm> comm, c10::intrusive_ptr<c10d::Backend> gloo)
    : c10d::Backend(gloo->getRank(), gloo->getSize()), comm_(std::move(comm)),
      gloo_(std::move(gloo)), options_(gloo_->getBackendOptions()),
      flight_(*this, options_->global_ranks_in_group),
      in_flight_(std::make_shared<std::atomic<int>>(0)), pid_(getpid())
{
}

// Posted tasks are carried out first, as gloo does: the other ranks count on this one.
BackendComm::~BackendComm()
{
    if (getpid() != pid_) return; // the threads that would are the parent's
    while (const int count = in_flight_->load())
        in_flight_->wait(count);
}

bool BackendComm::is_root(int64_t rank) const
{
    return rank >= 0 && rank < size_;
}

lofi_task BackendComm::task_of(lofi_collective collective, std::chrono::milliseconds timeout) const
{
    lofi_task task = LOFI_TASK_INIT;
    task.collective = collective;
    if (timeout <= kNoTimeout) timeout = options_->timeout;
    task.timeout_ms = static_cast<int>(std::clamp<int64_t>(timeout.count(), 1, INT_MAX));
    return task;
}

BackendComm::WorkPtr BackendComm::issue(Call &call)
{
    const auto seen = call.seen(++sequence_);
    if (!is_profiled()) return run(call, seen);
    return with_param_comms(seen, *this, options_->global_ranks_in_group,
                            [&] { return run(call, seen); });
}

BackendComm::WorkPtr BackendComm::run(Call &call, const Seen &seen)
{
    const auto copy_back = [](const auto &copies) {
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        for (const auto &[to, from] : copies)
            to.copy_(from);
    };
    Watch watch(seen, flight_);
    auto work = c10::make_intrusive<WorkComm>(call.type, seen.sequence, std::move(call.results));
    if (!call.async) {
        watch.begun();
        for (const auto &task : call.tasks)
            check(lofi_run(comm_.get(), &task));
        copy_back(call.copies);
        watch.ended(true);
        return work;
    }
    std::function<void()> finish;
    if (!call.copies.empty()) {
        finish = [copies = std::move(call.copies), copy_back] { copy_back(copies); };
    }
    work->post(comm_, call.tasks.data(), static_cast<int>(call.tasks.size()),
               std::move(call.tensors), std::move(finish), std::move(watch), in_flight_);
    return work;
}

BackendComm::WorkPtr BackendComm::broadcast(Tensors &tensors, const c10d::BroadcastOptions &opts)
{
    // Booleans, integers, floats: what gloo passes on. Bytes have no type that could differ.
    if (tensors.size() != 1 || opts.rootTensor != 0 || !is_root(opts.rootRank) ||
        !moves(tensors[0]) || !is_block(tensors[0])) {
        return gloo_->broadcast(tensors, opts);
    }
    Call call{c10d::OpType::BROADCAST, opts.asyncOp, tensors, {}, {tensors}};
    auto &task = call.tasks.emplace_back(task_of(LOFI_BROADCAST, opts.timeout));
    task.root = static_cast<int>(opts.rootRank);
    task.count = tensors[0].nbytes();
    task.out = call.block(tensors[0]);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::LOFI_ALL_TO_ALL_SINGLE(at::Tensor &output, at::Tensor &input,
                                                         std::vector<int64_t> &output_splits,
                                                         std::vector<int64_t> &input_splits,
                                                         const c10d::AllToAllOptions &opts)
{
    // Splits that are even on this rank need not be so on another.
    const bool even = output_splits.empty() && input_splits.empty();
    if (!even || !moves(input) || !input.is_contiguous() || !is_block(output) ||
        output.scalar_type() != input.scalar_type() || output.numel() != input.numel() ||
        input.dim() == 0 || output.dim() == 0 || input.size(0) % size_ != 0 ||
        output.size(0) % size_ != 0) {
        return gloo_->LOFI_ALL_TO_ALL_SINGLE(output, input, output_splits, input_splits, opts);
    }
    Call call{c10d::OpType::ALLTOALL, opts.asyncOp, input, {}, {{output}}};
    auto &task = call.tasks.emplace_back(task_of(LOFI_ALL_TO_ALL, opts.timeout));
    task.count = input.nbytes() / size_;
    task.in = call.read(input, output, output.const_data_ptr());
    task.out = call.block(output);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::barrier(const c10d::BarrierOptions &opts)
{
    Call call{c10d::OpType::BARRIER, opts.asyncOp, {}, {}, {}};
    call.tasks.push_back(task_of(LOFI_BARRIER, opts.timeout));
    return issue(call);
}

// ---- gloo's ----

BackendComm::WorkPtr BackendComm::allreduce_sparse(Tensors &tensors,
                                                   const c10d::AllreduceOptions &opts)
{
    return gloo_->allreduce_sparse(tensors, opts);
}

BackendComm::WorkPtr BackendComm::scatter(Tensors &outputs, TensorLists &inputs,
                                          const c10d::ScatterOptions &opts)
{
    return gloo_->scatter(outputs, inputs, opts);
}

BackendComm::WorkPtr BackendComm::alltoall(Tensors &outputs, Tensors &inputs,
                                           const c10d::AllToAllOptions &opts)
{
    return gloo_->alltoall(outputs, inputs, opts);
}

BackendComm::WorkPtr BackendComm::send(Tensors &tensors, int peer, int tag)
{
    return gloo_->send(tensors, peer, tag);
}

BackendComm::WorkPtr BackendComm::recv(Tensors &tensors, int peer, int tag)
{
    return gloo_->recv(tensors, peer, tag);
}

BackendComm::WorkPtr BackendComm::recvAnysource(Tensors &tensors, int tag)
{
    return gloo_->recvAnysource(tensors, tag);
}

void BackendComm::monitoredBarrier(const c10d::BarrierOptions &opts, bool wait_all_ranks)
{
    gloo_->monitoredBarrier(opts, wait_all_ranks);
}

void BackendComm::setGroupUid(const std::string &uid)
{
    c10d::Backend::setGroupUid(uid);
    gloo_->setGroupDesc(getGroupDesc());
    gloo_->setGroupUid(uid);
}

void BackendComm::abort()
{
    lofi_comm_abort(comm_.get());
    gloo_->abort();
}

} // namespace lofi
