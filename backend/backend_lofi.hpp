// SPDX-License-Identifier: MIT
//
// The process group backend. Each collective asks liblofi for its plan and passes the call on to
// an inner backend: the whole group's, or that of this node's members, with the inputs scaled, the
// root replaced by its image and the results repeated as the plan says.
//
// Threads: as for any c10d backend, collectives of one group are issued by one thread at a time.
// Nothing here blocks where gloo would not, but for the rendezvous of an inner backend at its
// first use and for the tag check before a collective that crosses nodes unasked.
#pragma once

#include <atomic>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "drop_in.hpp"
#include "inner.hpp"
#include "lofi.h"
#include "torch_compat.hpp"

namespace lofi {

using Tensors = std::vector<at::Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// They hold nothing that other backends' options do not hold. They have a type of their own because
// torch before 2.14 makes deep copies of a plug-in's options in Python.
struct OptionsLofi : c10d::Backend::Options {
    using c10d::Backend::Options::Options;
};

class BackendLofi : public c10d::Backend {
  public:
    struct Config {
        std::shared_ptr<lofi_group> group;
        std::unique_ptr<InnerSource> source;
        std::chrono::milliseconds timeout;
        std::string name;
        bool strict;         // LOFI_STRICT: refuse what would cross nodes unasked
        bool coalesces_cuda; // a CUDA inner backend may come, and coalesces
    };
    explicit BackendLofi(Config config);

    const lofi_group *group() const
    {
        return group_.get();
    }
    Inners &inners()
    {
        return inners_;
    }

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
        return "lofi";
    }
    c10::intrusive_ptr<Options> getBackendOptions() override
    {
        return options_;
    }
    bool supportsSplitting() const override
    {
        return true;
    }
    c10::intrusive_ptr<c10d::Backend> split(const c10::intrusive_ptr<c10d::Store> &store,
                                            const std::vector<int> &ranks,
                                            const c10::intrusive_ptr<Options> &opts) override;
    // NCCL has a function of this meaning: other ranks split now, and this rank is in no part.
    void leave_split(at::Device device);
    bool supportsCoalescing() const override
    {
        return coalesces_cuda_;
    }
    void startCoalescing() override;
    WorkPtr endCoalescing() override;

    uint64_t getSequenceNumberForGroup() override;
    void setSequenceNumberForGroup() override // it counts from 0, as gloo and NCCL do
    {
    }
    void setTimeout(std::chrono::milliseconds timeout) override;
    void setGroupUid(const std::string &uid) override;
    void eagerConnectSingleDevice(at::Device device) override;
    void enableCollectivesTiming() override;
    void waitForPendingWorks() override;
    c10d::ErrorType getError() override;
    std::shared_ptr<c10::Allocator> getMemAllocator() override;
    at::Tensor allocateTensor(long size, at::TensorOptions options) override;
    bool supportsTensorAlloc(c10::DeviceIndex device) override;
    void abort() override;
    void shutdown() override;
#ifdef LOFI_HAS_SUSPEND
    void suspend() override;
    void resume() override;
    std::unordered_map<std::string, uint64_t> getMemoryStats() override;
#endif
#ifdef LOFI_HAS_EPHEMERAL_TIMEOUT
    void addEphemeralTimeout(const std::chrono::milliseconds &timeout) override;
#endif
#ifdef LOFI_HAS_VIRTUAL_BOUND_DEVICE
    void setBoundDeviceId(std::optional<at::Device> device) override;
#endif

  private:
    // One collective: what to do, and the inner backend to do it on (null: nothing to do).
    struct Step {
        lofi_plan plan;
        Inner inner;
        at::Device device; // of the tensors
        bool is_local() const
        {
            return plan.action == LOFI_DO_LOCAL;
        }
        bool is_nothing() const
        {
            return plan.action == LOFI_DO_NOTHING;
        }
    };
    struct Call {
        lofi_collective collective;
        at::Device device;
        uint64_t bytes = 0; // of this rank's input
        lofi_op op = LOFI_SUM;
        bool is_bool = false;
        int root = 0;
        int peer = 0;
        bool holds_features = false; // a gather of rows of numbers
    };
    void dress(const c10::intrusive_ptr<c10d::Backend> &inner, c10::DeviceType device, Span span);
    std::string label_of(Span span) const;
    void name(c10d::Backend &inner, Span span) const;
    void describe();
    Step begin(const Call &call);
    Step begin_all_reduce(const Tensors &tensors, const c10d::ReduceOp &op);
    WorkPtr issued(const Step &step, WorkPtr work);
    WorkPtr absent(const Tensors &tensors, c10d::OpType type) const;
    WorkPtr allgather_uneven(const Tensors &outputs, const at::Tensor &input,
                             const c10d::AllgatherOptions &opts);
    WorkPtr reduce_scatter_uneven(const at::Tensor &output, const Tensors &inputs,
                                  const c10d::ReduceScatterOptions &opts);
    std::optional<Detour> detour(const Tensors &tensors, const c10d::ReduceOp &op);
    WorkPtr after(WorkPtr work, std::function<void()> finish, const Tensors &outputs,
                  c10d::OpType type);
    WorkPtr through(const Detour &detour, WorkPtr work, Tensors results, Tensors outputs,
                    c10d::OpType type);
    WorkPtr then(const Step &step, WorkPtr work, std::function<void()> finish, c10d::OpType type);
    // For each place in the node, the first member of the group that has it.
    std::vector<int> primaries() const;
    c10::intrusive_ptr<c10d::Backend> cuda_inner(const char *what);

    const std::shared_ptr<lofi_group> group_;
    const bool single_; // inside one node: every call goes straight to the inner backend
    const bool strict_;
    const bool coalesces_cuda_;
    bool watches_gathers_ = true;
    Inners inners_;
    c10::intrusive_ptr<OptionsLofi> options_;
    std::string last_split_; // name of the group that was split from this one last
    c10::weak_intrusive_ptr<c10d::Backend> last_child_{c10::intrusive_ptr<c10d::Backend>()};
    std::atomic<uint64_t> sequence_{0};
    std::atomic<bool> timeout_was_set_{false};
    bool is_described_ = false; // the inner backends know getGroupDesc()

    struct Coalescing {
        std::vector<c10::intrusive_ptr<c10d::Backend>> started;
        std::vector<WorkPtr> works;
        std::vector<std::function<void()>> finish; // what is left to do when all works are done
        at::Device device = at::kCPU;              // on which
    };
    std::optional<Coalescing> coalescing_;
};

} // namespace lofi
