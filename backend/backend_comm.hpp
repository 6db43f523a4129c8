// SPDX-License-Identifier: MIT
//
// The inner backend for tensors on the CPU whose ranks share a machine: liblofi's communicator
// for what it does, and the gloo group of the same ranks for the rest.
//
// Which of the two runs a call depends only on what is the same on all ranks of a correct program:
// the collective, dtypes, sizes, the operation and the root; and on the layout only where gloo
// goes by it too. Calls with a mistake in them go to gloo, which reports it.
#pragma once

#include <chrono>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "flight.hpp"
#include "lofi.h"
#include "reduction.hpp"
#include "torch_compat.hpp"
#include "work_comm.hpp"

namespace lofi {

class BackendComm : public c10d::Backend {
  public:
    using Tensors = std::vector<at::Tensor>;
    using TensorLists = std::vector<Tensors>;
    using WorkPtr = c10::intrusive_ptr<c10d::Work>;

    BackendComm(std::shared_ptr<lofi_comm> comm, c10::intrusive_ptr<c10d::Backend> gloo);
    ~BackendComm() override;

    const char *transport() const
    {
        return lofi_comm_transport(comm_.get());
    }
    // The reductions for a caller who knows reduction_of(tensors) already; the operation of `opts`
    // counts only where gloo runs the call, for want of a reduction.
    WorkPtr all_reduce(Tensors &tensors, const c10d::AllreduceOptions &opts,
                       const std::optional<Reduction> &reduction);
    WorkPtr all_reduce_coalesced(Tensors &tensors, const c10d::AllreduceCoalescedOptions &opts,
                                 const std::optional<Reduction> &reduction);
    WorkPtr reduce_to_root(Tensors &tensors, const c10d::ReduceOptions &opts,
                           const std::optional<Reduction> &reduction);

    WorkPtr broadcast(Tensors &tensors, const c10d::BroadcastOptions &opts) override;
    WorkPtr allreduce(Tensors &tensors, const c10d::AllreduceOptions &opts) override;
    WorkPtr allreduce_sparse(Tensors &tensors, const c10d::AllreduceOptions &opts) override;
    WorkPtr allreduce_coalesced(Tensors &tensors,
                                const c10d::AllreduceCoalescedOptions &opts) override;
    WorkPtr reduce(Tensors &tensors, const c10d::ReduceOptions &opts) override;
    WorkPtr allgather(TensorLists &outputs, Tensors &inputs,
                      const c10d::AllgatherOptions &opts) override;
    WorkPtr LOFI_ALL_GATHER_SINGLE(at::Tensor &output, at::Tensor &input,
                                   const c10d::AllgatherOptions &opts) override;
    WorkPtr allgather_coalesced(TensorLists &outputs, Tensors &inputs,
                                const c10d::AllgatherOptions &opts) override;
    WorkPtr LOFI_ALL_GATHER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                             const c10d::AllgatherOptions &opts) override;
    WorkPtr gather(TensorLists &outputs, Tensors &inputs, const c10d::GatherOptions &opts) override;
#ifdef LOFI_HAS_GATHER_SINGLE
    WorkPtr gather_single(at::Tensor &output, at::Tensor &input,
                          const c10d::GatherOptions &opts) override;
#endif
    WorkPtr scatter(Tensors &outputs, TensorLists &inputs,
                    const c10d::ScatterOptions &opts) override;
    WorkPtr reduce_scatter(Tensors &outputs, TensorLists &inputs,
                           const c10d::ReduceScatterOptions &opts) override;
    WorkPtr LOFI_REDUCE_SCATTER_SINGLE(at::Tensor &output, at::Tensor &input,
                                       const c10d::ReduceScatterOptions &opts) override;
    WorkPtr LOFI_REDUCE_SCATTER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                                 const c10d::ReduceScatterOptions &opts) override;
    WorkPtr LOFI_ALL_TO_ALL_SINGLE(at::Tensor &output, at::Tensor &input,
                                   std::vector<int64_t> &output_splits,
                                   std::vector<int64_t> &input_splits,
                                   const c10d::AllToAllOptions &opts) override;
    WorkPtr alltoall(Tensors &outputs, Tensors &inputs, const c10d::AllToAllOptions &opts) override;
    WorkPtr send(Tensors &tensors, int peer, int tag) override;
    WorkPtr recv(Tensors &tensors, int peer, int tag) override;
    WorkPtr recvAnysource(Tensors &tensors, int tag) override;
    WorkPtr barrier(const c10d::BarrierOptions &opts) override;
    void monitoredBarrier(const c10d::BarrierOptions &opts, bool wait_all_ranks) override;

    const std::string getBackendName() const override
    {
        return gloo_->getBackendName();
    }
    c10::intrusive_ptr<Options> getBackendOptions() override
    {
        return gloo_->getBackendOptions();
    }
    uint64_t getSequenceNumberForGroup() override
    {
        return sequence_ + gloo_->getSequenceNumberForGroup();
    }
    void setSequenceNumberForGroup() override
    {
        gloo_->setSequenceNumberForGroup();
    }
    void setTimeout(std::chrono::milliseconds timeout) override
    {
        gloo_->setTimeout(timeout);
    }
    void setGroupUid(const std::string &uid) override;
    void enableCollectivesTiming() override
    {
        gloo_->enableCollectivesTiming();
    }
    void waitForPendingWorks() override
    {
        gloo_->waitForPendingWorks();
    }
    c10d::ErrorType getError() override
    {
        return gloo_->getError();
    }
    void abort() override;
    void shutdown() override
    {
        gloo_->shutdown();
    }

  private:
    struct Call;
    WorkPtr issue(Call &call);
    WorkPtr run(Call &call, const Seen &seen);
    bool is_root(int64_t rank) const;
    lofi_task task_of(lofi_collective collective, std::chrono::milliseconds timeout) const;
    lofi_task task_of(lofi_collective collective, const Reduction &reduction,
                      std::chrono::milliseconds timeout) const;
    std::optional<Reduction> scatter_of(const at::Tensor &output, const at::Tensor &input,
                                        const c10d::ReduceOp &op) const;
    void add_scatter(Call &call, const at::Tensor &output, const at::Tensor &input,
                     const Reduction &reduction, std::chrono::milliseconds timeout) const;
    void add_gather(Call &call, const Tensors &outputs, const at::Tensor &input,
                    std::chrono::milliseconds timeout) const;
    void add_gather(Call &call, const at::Tensor &output, const at::Tensor &input,
                    std::chrono::milliseconds timeout) const;

    const std::shared_ptr<lofi_comm> comm_;
    const c10::intrusive_ptr<c10d::Backend> gloo_;
    const c10::intrusive_ptr<Options> options_; // gloo's, which hold the time-out of the group
    Flight flight_;
    const InFlight in_flight_;
    const int pid_;
    std::atomic<uint64_t> sequence_{0};
};

} // namespace lofi
