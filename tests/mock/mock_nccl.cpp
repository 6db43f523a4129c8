// SPDX-License-Identifier: MIT
//
// A double of ProcessGroupNCCL for machines without a GPU: a backend that calls itself "nccl",
// notes every call with what it was given, and lets a gloo group move the data, so that results
// can be checked too. It refuses what NCCL refuses. Its works count who waits for them.
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/csrc/utils/pybind.h>

#include "torch_compat.hpp"

namespace {

namespace py = pybind11;
using Tensors = std::vector<at::Tensor>;
using TensorLists = std::vector<Tensors>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

struct Call {
    std::string name;
    std::string op;
    double factor = 0;
    int root = -1;
    int peer = -1;
    std::vector<std::vector<int64_t>> shapes; // of the inputs
};

class MockWork : public c10d::Work {
  public:
    explicit MockWork(c10d::OpType type, Tensors outputs, bool has_future) : c10d::Work(-1, type)
    {
        if (!has_future) return;
        future_ =
            c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
        future_->markCompleted(c10::IValue(outputs));
    }
    bool isCompleted() override
    {
        ++waits;
        return true;
    }
    bool isSuccess() const override
    {
        return true;
    }
    void synchronize() override
    {
        ++waits;
    }
    bool wait(std::chrono::milliseconds) override
    {
        ++waits;
        return true;
    }
    c10::intrusive_ptr<c10::ivalue::Future> getFuture() override
    {
        return future_;
    }
    int waits = 0;

  private:
    c10::intrusive_ptr<c10::ivalue::Future> future_; // null for what was coalesced, as NCCL's
};

const char *name_of(const c10d::ReduceOp &op)
{
    switch (op.op_) {
    case c10d::ReduceOp::SUM:
        return "SUM";
    case c10d::ReduceOp::AVG:
        return "AVG";
    case c10d::ReduceOp::PRODUCT:
        return "PRODUCT";
    case c10d::ReduceOp::MIN:
        return "MIN";
    case c10d::ReduceOp::MAX:
        return "MAX";
    case c10d::ReduceOp::PREMUL_SUM:
        return "PREMUL_SUM";
    default:
        TORCH_CHECK_VALUE(false, "Cannot use this ReduceOp with NCCL");
    }
}

// The factor that reaches NCCL's kernel.
double as_read(double factor, at::ScalarType type)
{
    if (type != at::kBFloat16) return factor;
#ifdef LOFI_NCCL_READS_HALF_A_FACTOR
    const auto bits = c10::bit_cast<uint32_t>(static_cast<float>(factor));
    return c10::BFloat16(static_cast<uint16_t>(bits), c10::BFloat16::from_bits());
#else
    return c10::BFloat16(static_cast<float>(factor));
#endif
}

class MockNccl : public c10d::Backend {
  public:
    MockNccl(c10::intrusive_ptr<c10d::Backend> gloo, std::string label)
        : c10d::Backend(gloo->getRank(), gloo->getSize()), label(std::move(label)),
          gloo_(std::move(gloo))
    {
    }

    std::string label;
    std::vector<Call> calls;
    std::vector<WorkPtr> works;
    std::vector<std::string> events; // what is no collective

    const std::string getBackendName() const override
    {
        return "nccl";
    }
    bool supportsCoalescing() const override
    {
        return true;
    }
    bool supportsSplitting() const override
    {
        return true;
    }
    void startCoalescing() override
    {
        events.emplace_back("start_coalescing");
        coalescing_ = true;
    }
    WorkPtr endCoalescing() override
    {
        events.emplace_back("end_coalescing");
        coalescing_ = false;
        return done(c10d::OpType::COALESCED, {}, false);
    }
    void eagerConnectSingleDevice(at::Device device) override
    {
        events.push_back("connect " + device.str());
    }
    void setTimeout(std::chrono::milliseconds timeout) override
    {
        events.push_back("timeout " + std::to_string(timeout.count()));
    }
    void abort() override
    {
        events.emplace_back("abort");
    }
    void shutdown() override
    {
        events.emplace_back("shutdown");
    }

    WorkPtr broadcast(Tensors &tensors, const c10d::BroadcastOptions &opts) override
    {
        note("broadcast", tensors).root = static_cast<int>(opts.rootRank);
        gloo_->broadcast(tensors, opts)->wait();
        return done(c10d::OpType::BROADCAST, tensors, opts);
    }
    WorkPtr allreduce(Tensors &tensors, const c10d::AllreduceOptions &opts) override
    {
        return reduce_all("allreduce", tensors, opts);
    }
    WorkPtr allreduce_coalesced(Tensors &tensors,
                                const c10d::AllreduceCoalescedOptions &opts) override
    {
        return reduce_all("allreduce_coalesced", tensors, opts);
    }
    WorkPtr reduce(Tensors &tensors, const c10d::ReduceOptions &opts) override
    {
        auto &call = note_op("reduce", tensors, opts.reduceOp);
        call.root = static_cast<int>(opts.rootRank);
        const bool at_root = getRank() == opts.rootRank;
        Tensors all{tensors[0].clone()};
        sum(all, opts.reduceOp);
        if (at_root) tensors[0].copy_(all[0]);
        return done(c10d::OpType::REDUCE, tensors, opts);
    }
    WorkPtr allgather(TensorLists &outputs, Tensors &inputs,
                      const c10d::AllgatherOptions &opts) override
    {
        note("allgather", inputs);
        gloo_->allgather(outputs, inputs, opts)->wait();
        return done(c10d::OpType::ALLGATHER, outputs[0], opts);
    }
    WorkPtr LOFI_ALL_GATHER_SINGLE(at::Tensor &output, at::Tensor &input,
                                   const c10d::AllgatherOptions &opts) override
    {
        note("all_gather_single", {input});
        gloo_->LOFI_ALL_GATHER_SINGLE(output, input, opts)->wait();
        return done(c10d::OpType::_ALLGATHER_BASE, {output}, opts);
    }
    WorkPtr LOFI_ALL_GATHER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                             const c10d::AllgatherOptions &opts) override
    {
        note("all_gather_single_coalesced", inputs);
        for (size_t i = 0; i < inputs.size(); ++i)
            gloo_->LOFI_ALL_GATHER_SINGLE(outputs[i], inputs[i], opts)->wait();
        return done(c10d::OpType::COALESCED, outputs);
    }
    WorkPtr gather(TensorLists &outputs, Tensors &inputs, const c10d::GatherOptions &opts) override
    {
        note("gather", inputs).root = static_cast<int>(opts.rootRank);
        gloo_->gather(outputs, inputs, opts)->wait();
        return done(c10d::OpType::GATHER, inputs, opts);
    }
    WorkPtr scatter(Tensors &outputs, TensorLists &inputs,
                    const c10d::ScatterOptions &opts) override
    {
        note("scatter", outputs).root = static_cast<int>(opts.rootRank);
        gloo_->scatter(outputs, inputs, opts)->wait();
        return done(c10d::OpType::SCATTER, outputs, opts);
    }
    WorkPtr LOFI_REDUCE_SCATTER_SINGLE(at::Tensor &output, at::Tensor &input,
                                       const c10d::ReduceScatterOptions &opts) override
    {
        note_op("reduce_scatter_single", {input}, opts.reduceOp);
        gloo_->LOFI_REDUCE_SCATTER_SINGLE(output, input, opts)->wait();
        return done(c10d::OpType::_REDUCE_SCATTER_BASE, {output}, opts);
    }
    WorkPtr LOFI_ALL_TO_ALL_SINGLE(at::Tensor &output, at::Tensor &input,
                                   std::vector<int64_t> &output_splits,
                                   std::vector<int64_t> &input_splits,
                                   const c10d::AllToAllOptions &opts) override
    {
        note("all_to_all_single", {input});
        gloo_->LOFI_ALL_TO_ALL_SINGLE(output, input, output_splits, input_splits, opts)->wait();
        return done(c10d::OpType::ALLTOALL_BASE, {output}, opts);
    }
    WorkPtr reduce_scatter(Tensors &outputs, TensorLists &inputs,
                           const c10d::ReduceScatterOptions &opts) override
    {
        note_op("reduce_scatter", inputs[0], opts.reduceOp);
        gloo_->reduce_scatter(outputs, inputs, opts)->wait();
        return done(c10d::OpType::REDUCE_SCATTER, outputs, opts);
    }
    WorkPtr LOFI_REDUCE_SCATTER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                                 const c10d::ReduceScatterOptions &opts) override
    {
        note_op("reduce_scatter_single_coalesced", inputs, opts.reduceOp);
        for (size_t i = 0; i < inputs.size(); ++i)
            gloo_->LOFI_REDUCE_SCATTER_SINGLE(outputs[i], inputs[i], opts)->wait();
        return done(c10d::OpType::COALESCED, outputs);
    }
    WorkPtr alltoall(Tensors &outputs, Tensors &inputs, const c10d::AllToAllOptions &opts) override
    {
        note("all_to_all", inputs);
        auto given = at::cat(inputs), got = at::empty_like(given); // older gloo has no lists here
        std::vector<int64_t> even;
        gloo_->LOFI_ALL_TO_ALL_SINGLE(got, given, even, even, opts)->wait();
        auto parts = got.chunk(getSize());
        for (size_t i = 0; i < outputs.size(); ++i)
            outputs[i].copy_(parts[i]);
        return done(c10d::OpType::ALLTOALL, outputs, opts);
    }
    WorkPtr send(Tensors &tensors, int peer, int tag) override
    {
        note("send", tensors).peer = peer;
        gloo_->send(tensors, peer, tag)->wait();
        return done(c10d::OpType::SEND, tensors);
    }
    WorkPtr recv(Tensors &tensors, int peer, int tag) override
    {
        note("recv", tensors).peer = peer;
        gloo_->recv(tensors, peer, tag)->wait();
        return done(c10d::OpType::RECV, tensors);
    }
    WorkPtr barrier(const c10d::BarrierOptions &opts) override
    {
        note("barrier", {});
        gloo_->barrier(opts)->wait();
        return done(c10d::OpType::BARRIER, {}, opts);
    }

  private:
    Call &note(const char *name, const Tensors &inputs)
    {
        calls.emplace_back().name = name;
        for (const auto &tensor : inputs)
            calls.back().shapes.push_back(tensor.sizes().vec());
        return calls.back();
    }
    Call &note_op(const char *name, const Tensors &inputs, const c10d::ReduceOp &op)
    {
        auto &call = note(name, inputs);
        call.op = name_of(op);
        if (op.op_ == c10d::ReduceOp::PREMUL_SUM) {
            TORCH_CHECK_TYPE(at::isFloatingType(inputs[0].scalar_type()),
                             "PreMulSum Data type must be half, float, bfloat16 or double");
            call.factor = as_read(
                static_cast<const LOFI_PREMUL_SUPPLEMENT *>(op.supplement_.get())->double_factor,
                inputs[0].scalar_type());
        }
        return call;
    }
    template <class Opts>
    WorkPtr reduce_all(const char *name, Tensors &tensors, const Opts &opts)
    {
        note_op(name, tensors, opts.reduceOp);
        sum(tensors, opts.reduceOp);
        return done(c10d::OpType::ALLREDUCE, tensors, opts);
    }
    void sum(Tensors &tensors, const c10d::ReduceOp &op)
    {
        for (auto &tensor : tensors) {
            c10d::AllreduceOptions plain;
            plain.reduceOp = op;
            if (op.op_ == c10d::ReduceOp::PREMUL_SUM || op.op_ == c10d::ReduceOp::AVG)
                plain.reduceOp = c10d::ReduceOp::SUM;
            if (tensor.scalar_type() == at::kBool) plain.reduceOp = c10d::ReduceOp::MAX;
            at::Tensor values = tensor.detach();
            // One rank: as NCCL before 2.29.7, which forgets the last elements of some sizes.
            const auto end = values.numel() - (getSize() == 1 ? 1 : 0);
            if (op.op_ == c10d::ReduceOp::PREMUL_SUM)
                values.view(-1).slice(0, 0, end).mul_(calls.back().factor);
            Tensors one{values};
            gloo_->allreduce(one, plain)->wait();
            if (op.op_ == c10d::ReduceOp::AVG) values.div_(getSize());
        }
    }
    // As NCCL's: no work where nobody asked for one.
    template <class Opts>
    WorkPtr done(c10d::OpType type, Tensors outputs, const Opts &opts)
    {
        auto work = done(type, std::move(outputs));
        return opts.asyncOp ? work : nullptr;
    }
    WorkPtr done(c10d::OpType type, Tensors outputs, bool has_future = true)
    {
        auto work =
            c10::make_intrusive<MockWork>(type, std::move(outputs), has_future && !coalescing_);
        works.push_back(work);
        return work;
    }

    c10::intrusive_ptr<c10d::Backend> gloo_;
    bool coalescing_ = false;
};

} // namespace

PYBIND11_MODULE(lofi_mock, m)
{
    py::module_::import("torch");
    py::class_<Call>(m, "Call")
        .def_readonly("name", &Call::name)
        .def_readonly("op", &Call::op)
        .def_readonly("factor", &Call::factor)
        .def_readonly("root", &Call::root)
        .def_readonly("peer", &Call::peer)
        .def_readonly("shapes", &Call::shapes);
    py::class_<MockWork, c10d::Work, c10::intrusive_ptr<MockWork>>(m, "MockWork")
        .def_readonly("waits", &MockWork::waits);
    py::class_<MockNccl, c10d::Backend, c10::intrusive_ptr<MockNccl>>(m, "MockNccl")
        .def(py::init<c10::intrusive_ptr<c10d::Backend>, std::string>())
        .def_readonly("label", &MockNccl::label)
        .def_readonly("works", &MockNccl::works)
        .def_readonly("events", &MockNccl::events)
        .def("take_calls",
             [](MockNccl &self) {
                 auto calls = std::move(self.calls);
                 self.calls.clear();
                 return calls;
             })
        .def("perform_nocolor_split",
             [](MockNccl &self, const at::Device &device) {
                 self.events.push_back("leave_split " + device.str());
             })
        .def_property_readonly("uid", [](const MockNccl &self) { return self.getGroupUid(); })
        .def_property_readonly("desc", [](const MockNccl &self) { return self.getGroupDesc(); });
}
