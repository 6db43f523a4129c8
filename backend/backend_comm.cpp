// SPDX-License-Identifier: MIT
#include "backend_comm.hpp"

#include <algorithm>
#include <climits>
#include <forward_list>

#include <ATen/core/LegacyTypeDispatch.h>
#include <unistd.h>

#include "check.hpp"
#include "convert.hpp"

namespace lofi {
namespace {

struct Reduction {
    lofi_dtype dtype;
    lofi_op op;
    double factor = 1.0;
};

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

// What liblofi computes, where gloo computes it; and PREMUL_SUM, which gloo refuses.
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

bool on_cpu(const at::Tensor &tensor)
{
    return tensor.is_cpu() && tensor.layout() == at::kStrided;
}

// Its elements fill one block of memory, in whatever order: gloo passes such a block as it is.
bool is_block(const at::Tensor &tensor)
{
    return on_cpu(tensor) && tensor.is_non_overlapping_and_dense();
}

// Memory from elsewhere (torch.frombuffer) may begin in the middle of an element.
bool is_aligned(const at::Tensor &tensor)
{
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % tensor.itemsize() == 0;
}

bool is_plain(const at::Tensor &tensor)
{
    return tensor.is_contiguous() && is_aligned(tensor);
}

// Of dense tensors exactly; a strided one is taken to fill all from its first to its last element.
bool overlap(const at::Tensor &a, const at::Tensor &b)
{
    if (a.numel() == 0 || b.numel() == 0) return false;
    const auto end = [](const at::Tensor &tensor) {
        int64_t last = 0;
        for (int64_t i = 0; i < tensor.dim(); ++i)
            last += (tensor.size(i) - 1) * tensor.stride(i);
        return static_cast<const char *>(tensor.const_data_ptr()) + (last + 1) * tensor.itemsize();
    };
    const std::less<const char *> before;
    return before(static_cast<const char *>(a.const_data_ptr()), end(b)) &&
           before(static_cast<const char *>(b.const_data_ptr()), end(a));
}

bool moves(const at::Tensor &tensor)
{
    return on_cpu(tensor) && arithmetic_of(tensor.scalar_type());
}

bool are_like(const at::Tensor &one, const at::Tensor &other)
{
    return on_cpu(other) && one.scalar_type() == other.scalar_type() &&
           one.sizes() == other.sizes();
}

bool are_like(const at::Tensor &one, const std::vector<at::Tensor> &others)
{
    return std::all_of(others.begin(), others.end(),
                       [&](const at::Tensor &other) { return are_like(one, other); });
}

// Where gloo copies the result of a sum of booleans, the copy makes every true a 1.
void keep_truth(lofi_task &task, const at::Tensor &tensor)
{
    if (tensor.scalar_type() == at::kBool && task.op == LOFI_SUM) task.op = LOFI_MAX;
}

// `whole` is `part`, `count` times along the first dimension.
bool is_multiple(const at::Tensor &whole, const at::Tensor &part, int count)
{
    return on_cpu(whole) && on_cpu(part) && whole.scalar_type() == part.scalar_type() &&
           whole.dim() > 0 && whole.dim() == part.dim() && whole.size(0) == part.size(0) * count &&
           whole.sizes().slice(1) == part.sizes().slice(1);
}

// Where the slot of `rank` begins in `whole`, whose slots are like `part`.
const void *own_slot(const at::Tensor &whole, const at::Tensor &part, int rank)
{
    return static_cast<const char *>(whole.const_data_ptr()) + rank * part.nbytes();
}

std::vector<at::Tensor> slots_of(const at::Tensor &whole, int count)
{
    std::vector<at::Tensor> slots;
    const int64_t each = whole.size(0) / count;
    for (int i = 0; i < count; ++i)
        slots.push_back(whole.narrow(0, i * each, each));
    return slots;
}

} // namespace

// One call on its way to the communicator: its tasks, and what has to live until they are done.
struct BackendComm::Call {
    c10d::OpType type;
    bool async;
    c10::SmallVector<lofi_task, 1> tasks;
    TensorLists results;                                        // of the future
    Tensors tensors = {};                                       // what the tasks read and write
    std::forward_list<std::vector<void *>> lists = {};          // of the tasks
    std::vector<std::pair<at::Tensor, at::Tensor>> copies = {}; // to the first from the second

    // The elements in their logical order, as gloo's flat copies have them.
    const void *read(const at::Tensor &tensor)
    {
        return keep(packed(tensor)).const_data_ptr();
    }
    // The same, where the outputs may lie over the input. liblofi allows that in one way: the
    // input begins at `own`, its slot of them.
    const void *read(const at::Tensor &tensor, at::ArrayRef<at::Tensor> outputs, const void *own)
    {
        const bool apart =
            tensor.const_data_ptr() == own ||
            std::none_of(outputs.begin(), outputs.end(),
                         [&](const at::Tensor &output) { return overlap(tensor, output); });
        return apart ? read(tensor) : keep(copied(tensor)).data_ptr();
    }
    void *write(const at::Tensor &tensor)
    {
        if (is_plain(tensor)) return keep(tensor).mutable_data_ptr();
        return copied_back(tensor, at::empty(tensor.sizes(), tensor.options()));
    }
    void *update(const at::Tensor &tensor)
    {
        if (is_plain(tensor)) return keep(tensor).mutable_data_ptr();
        return copied_back(tensor, packed(tensor));
    }
    // The elements as they lie in memory.
    void *block(const at::Tensor &tensor)
    {
        if (is_aligned(tensor)) return keep(tensor).mutable_data_ptr();
        return copied_back(tensor, copied(tensor));
    }
    void *const *outputs_of(const Tensors &outputs)
    {
        auto &list = lists.emplace_front();
        for (const auto &output : outputs)
            list.push_back(write(output));
        return list.data();
    }
    const void *const *inputs_of(const Tensors &inputs, const at::Tensor &output, int rank)
    {
        auto &list = lists.emplace_front();
        for (size_t i = 0; i < inputs.size(); ++i) {
            const void *own = static_cast<int>(i) == rank ? output.const_data_ptr() : nullptr;
            list.push_back(const_cast<void *>(read(inputs[i], output, own)));
        }
        return list.data();
    }

  private:
    const at::Tensor &keep(const at::Tensor &tensor)
    {
        return tensors.emplace_back(tensor);
    }
    static at::Tensor packed(const at::Tensor &tensor)
    {
        if (is_plain(tensor)) return tensor;
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        return tensor.clone(at::MemoryFormat::Contiguous);
    }
    static at::Tensor copied(const at::Tensor &tensor)
    {
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        return tensor.clone();
    }
    void *copied_back(const at::Tensor &to, at::Tensor from)
    {
        copies.emplace_back(to, std::move(from));
        return copies.back().second.mutable_data_ptr();
    }
};

BackendComm::BackendComm(std::shared_ptr<lofi_comm> comm, c10::intrusive_ptr<c10d::Backend> gloo)
    : c10d::Backend(gloo->getRank(), gloo->getSize()), comm_(std::move(comm)),
      gloo_(std::move(gloo)), options_(gloo_->getBackendOptions()),
      in_flight_(std::make_shared<std::atomic<int>>(0)), pid_(getpid())
{
}

// What was posted is carried out, as gloo does: the other ranks count on this one.
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

// For what reduces() says yes to.
template <class Opts>
lofi_task BackendComm::reduction(lofi_collective collective, const at::Tensor &tensor,
                                 const Opts &opts) const
{
    auto task = task_of(collective, opts.timeout);
    const auto reduction = reduction_of(tensor.scalar_type(), opts.reduceOp).value();
    task.dtype = reduction.dtype;
    task.op = reduction.op;
    task.factor = reduction.factor;
    return task;
}

BackendComm::WorkPtr BackendComm::issue(Call &call)
{
    const auto copy_back = [](const auto &copies) {
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        for (const auto &[to, from] : copies)
            to.copy_(from);
    };
    auto work = c10::make_intrusive<WorkComm>(call.type, ++sequence_, std::move(call.results));
    if (!call.async) {
        for (const auto &task : call.tasks)
            check(lofi_run(comm_.get(), &task));
        copy_back(call.copies);
        return work;
    }
    std::function<void()> finish;
    if (!call.copies.empty()) {
        finish = [copies = std::move(call.copies), copy_back] { copy_back(copies); };
    }
    work->post(comm_, call.tasks.data(), static_cast<int>(call.tasks.size()),
               std::move(call.tensors), std::move(finish), in_flight_);
    return work;
}

bool BackendComm::reduces(const Tensors &tensors, const c10d::ReduceOp &op, bool coalesced)
{
    if (tensors.empty() || (tensors.size() > 1 && !coalesced)) return false;
    const auto type = tensors.front().scalar_type();
    for (const auto &tensor : tensors) {
        if (tensor.scalar_type() != type || !(coalesced ? on_cpu(tensor) : is_block(tensor))) {
            return false;
        }
    }
    return reduction_of(type, op).has_value();
}

BackendComm::WorkPtr BackendComm::allreduce(Tensors &tensors, const c10d::AllreduceOptions &opts)
{
    if (!reduces(tensors, opts.reduceOp, false)) return gloo_->allreduce(tensors, opts);
    Call call{c10d::OpType::ALLREDUCE, opts.asyncOp, {}, {tensors}};
    auto &task = call.tasks.emplace_back(reduction(LOFI_ALL_REDUCE, tensors[0], opts));
    task.count = tensors[0].numel();
    task.in = task.out = call.block(tensors[0]);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::allreduce_coalesced(Tensors &tensors,
                                                      const c10d::AllreduceCoalescedOptions &opts)
{
    if (!reduces(tensors, opts.reduceOp, true)) return gloo_->allreduce_coalesced(tensors, opts);
    Call call{c10d::OpType::ALLREDUCE_COALESCED, opts.asyncOp, {}, {tensors}};
    for (const auto &tensor : tensors) {
        auto &task = call.tasks.emplace_back(reduction(LOFI_ALL_REDUCE, tensor, opts));
        keep_truth(task, tensor);
        task.count = tensor.numel();
        task.in = task.out = call.update(tensor);
    }
    return issue(call);
}

// Outside of the root nothing is written; gloo leaves partial sums there.
BackendComm::WorkPtr BackendComm::reduce(Tensors &tensors, const c10d::ReduceOptions &opts)
{
    if (!is_root(opts.rootRank) || opts.rootTensor != 0 ||
        !reduces(tensors, opts.reduceOp, false)) {
        return gloo_->reduce(tensors, opts);
    }
    Call call{c10d::OpType::REDUCE, opts.asyncOp, {}, {tensors}};
    auto &task = call.tasks.emplace_back(reduction(LOFI_REDUCE, tensors[0], opts));
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
    if (outputs.size() != 1 || inputs.size() != 1 ||
        inputs[0].size() != static_cast<size_t>(size_) || !on_cpu(outputs[0]) ||
        !are_like(outputs[0], inputs[0]) || !reduces(inputs[0], opts.reduceOp, true)) {
        return gloo_->reduce_scatter(outputs, inputs, opts);
    }
    Call call{c10d::OpType::REDUCE_SCATTER, opts.asyncOp, {}, {outputs}};
    auto &task = call.tasks.emplace_back(reduction(LOFI_REDUCE_SCATTER, outputs[0], opts));
    task.count = outputs[0].numel();
    task.in_list = call.inputs_of(inputs[0], outputs[0], rank_);
    task.out = call.write(outputs[0]);
    return issue(call);
}

bool BackendComm::scatters(const at::Tensor &output, const at::Tensor &input,
                           const c10d::ReduceOp &op) const
{
    return is_multiple(input, output, size_) && reduces({input}, op, true);
}

void BackendComm::add_scatter(Call &call, const at::Tensor &output, const at::Tensor &input,
                              const c10d::ReduceScatterOptions &opts) const
{
    auto &task = call.tasks.emplace_back(reduction(LOFI_REDUCE_SCATTER, output, opts));
    keep_truth(task, output);
    task.count = output.numel();
    task.in_list = call.inputs_of(slots_of(input, size_), output, rank_);
    task.out = call.write(output);
}

BackendComm::WorkPtr BackendComm::LOFI_REDUCE_SCATTER_SINGLE(at::Tensor &output, at::Tensor &input,
                                                             const c10d::ReduceScatterOptions &opts)
{
    if (!scatters(output, input, opts.reduceOp)) {
        return gloo_->LOFI_REDUCE_SCATTER_SINGLE(output, input, opts);
    }
    Call call{c10d::OpType::_REDUCE_SCATTER_BASE, opts.asyncOp, {}, {{output}}};
    add_scatter(call, output, input, opts);
    return issue(call);
}

BackendComm::WorkPtr
BackendComm::LOFI_REDUCE_SCATTER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                                  const c10d::ReduceScatterOptions &opts)
{
    bool all = outputs.size() == inputs.size() && !inputs.empty();
    for (size_t i = 0; all && i < inputs.size(); ++i)
        all = scatters(outputs[i], inputs[i], opts.reduceOp);
    if (!all) return gloo_->LOFI_REDUCE_SCATTER_SINGLE_COALESCED(outputs, inputs, opts);
    Call call{c10d::OpType::_REDUCE_SCATTER_BASE, opts.asyncOp, {}, {outputs}};
    for (size_t i = 0; i < inputs.size(); ++i)
        add_scatter(call, outputs[i], inputs[i], opts);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::broadcast(Tensors &tensors, const c10d::BroadcastOptions &opts)
{
    // Booleans, integers, floats: what gloo passes on. Bytes have no type that could differ.
    if (tensors.size() != 1 || opts.rootTensor != 0 || !is_root(opts.rootRank) ||
        !moves(tensors[0]) || !is_block(tensors[0])) {
        return gloo_->broadcast(tensors, opts);
    }
    Call call{c10d::OpType::BROADCAST, opts.asyncOp, {}, {tensors}};
    auto &task = call.tasks.emplace_back(task_of(LOFI_BROADCAST, opts.timeout));
    task.root = static_cast<int>(opts.rootRank);
    task.count = tensors[0].nbytes();
    task.out = call.block(tensors[0]);
    return issue(call);
}

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
    Call call{c10d::OpType::ALLGATHER, opts.asyncOp, {}, outputs};
    add_gather(call, outputs[0], inputs[0], opts.timeout);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::LOFI_ALL_GATHER_SINGLE(at::Tensor &output, at::Tensor &input,
                                                         const c10d::AllgatherOptions &opts)
{
    if (!is_multiple(output, input, size_) || !moves(input)) {
        return gloo_->LOFI_ALL_GATHER_SINGLE(output, input, opts);
    }
    Call call{c10d::OpType::ALLGATHER, opts.asyncOp, {}, {slots_of(output, size_)}};
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
    Call call{c10d::OpType::ALLGATHER_COALESCED, opts.asyncOp, {}, outputs};
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
    Call call{c10d::OpType::ALLGATHER_COALESCED, opts.asyncOp, {}, std::move(results)};
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
    Call call{c10d::OpType::GATHER, opts.asyncOp, {}, outputs};
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
    Call call{c10d::OpType::GATHER, opts.asyncOp, {}, {}};
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
    Call call{c10d::OpType::ALLTOALL, opts.asyncOp, {}, {{output}}};
    auto &task = call.tasks.emplace_back(task_of(LOFI_ALL_TO_ALL, opts.timeout));
    task.count = input.nbytes() / size_;
    task.in = call.read(input, output, output.const_data_ptr());
    task.out = call.block(output);
    return issue(call);
}

BackendComm::WorkPtr BackendComm::barrier(const c10d::BarrierOptions &opts)
{
    Call call{c10d::OpType::BARRIER, opts.asyncOp, {}, {}};
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
    gloo_->setGroupUid(uid);
}

void BackendComm::abort()
{
    lofi_comm_abort(comm_.get());
    gloo_->abort();
}

} // namespace lofi
