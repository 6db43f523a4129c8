// SPDX-License-Identifier: MIT
#include "backend_lofi.hpp"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "adjust.hpp"
#include "check.hpp"
#include "convert.hpp"
#include "session.hpp"
#include "work_lofi.hpp"

namespace lofi {
namespace {

at::Device device_of(const Tensors &tensors)
{
    return tensors.empty() ? at::Device(at::kCPU) : tensors.front().device();
}

bool holds_bool(const Tensors &tensors)
{
    return !tensors.empty() && tensors.front().scalar_type() == at::kBool;
}

const Tensors &front_or_empty(const TensorLists &lists)
{
    static const Tensors none;
    return lists.empty() ? none : lists.front();
}

at::Device device_of(const c10d::BarrierOptions &opts, std::optional<at::Device> bound,
                     bool has_cuda)
{
    if (opts.device) return *opts.device;
    // gloo overlooks device_ids, and scripts give them on machines without a GPU too.
    if (!opts.device_ids.empty() && has_cuda) return at::kCUDA;
    return bound.value_or(at::kCPU);
}

// The caller may drop the tensors before a stream that is not theirs has come to the copies.
void hold(const at::Tensor &tensor)
{
    if (!tensor.is_cuda()) return;
    const auto device = tensor.device();
    tensor.record_stream(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

// Fills outputs[r] of every member r from that of the first member with r's place.
void tile(const lofi_group *group, const std::vector<int> &primaries, Tensors &outputs)
{
    for (int rank = 0; rank < lofi_group_size(group); ++rank) {
        const int from = primaries[lofi_group_place(group, rank)];
        if (from != rank) outputs[rank].copy_(outputs[from], /*non_blocking=*/true);
        hold(outputs[rank]);
    }
}

// The same for one tensor with the members' slots one after another; `local` has the slots of
// this node's places.
void tile_single(const lofi_group *group, const at::Tensor &local, at::Tensor &output)
{
    auto slots = output.view({lofi_group_size(group), -1});
    auto places = local.view({lofi_group_local_size(group), -1});
    for (int rank = 0; rank < lofi_group_size(group); ++rank) {
        slots[rank].copy_(places[lofi_group_place(group, rank)], /*non_blocking=*/true);
    }
    hold(output);
    hold(local);
}

// The inputs of this node's members one after another along the first dimension, as gloo wants it.
at::Tensor local_output(const lofi_group *group, const at::Tensor &input)
{
    auto sizes = input.sizes().vec();
    if (sizes.empty()) sizes.push_back(1);
    sizes.front() *= lofi_group_local_size(group);
    return at::empty(sizes, input.options());
}

void check_slots(const lofi_group *group, const at::Tensor &output, const at::Tensor &input)
{
    TORCH_CHECK(output.is_contiguous(), "lofi: the output of all_gather must be contiguous");
    TORCH_CHECK(output.numel() == input.numel() * lofi_group_size(group),
                "lofi: the output of all_gather must hold ", lofi_group_size(group), " x ",
                input.numel(), " elements (members x input), got ", output.numel());
}

} // namespace

BackendLofi::BackendLofi(Config config)
    : c10d::Backend(lofi_group_rank(config.group.get()), lofi_group_size(config.group.get())),
      group_(std::move(config.group)), single_(lofi_group_node_count(group_.get()) == 1),
      strict_(config.strict), coalesces_cuda_(config.coalesces_cuda),
      inners_(std::move(config.source), single_,
              [this](const auto &made, auto device, auto span) { dress(made, device, span); }),
      options_(c10::make_intrusive<OptionsLofi>("lofi", config.timeout))
{
    options_->group_name = config.name;
    for (int rank = 0; rank < size_; ++rank) {
        options_->global_ranks_in_group.push_back(lofi_group_global_rank(group_.get(), rank));
    }
}

// Inner backends come late, so what the user set on the group meanwhile is repeated on them.
void BackendLofi::dress(const c10::intrusive_ptr<c10d::Backend> &inner, c10::DeviceType device,
                        Span span)
{
    if (!getGroupUid().empty()) name(*inner, span);
    if (timeout_was_set_) inner->setTimeout(options_->timeout);
    if (!bound_device_id_) return;
    inner->setBoundDeviceId(bound_device_id_);
    if (bound_device_id_->type() == device && inner->supportsSplitting()) {
        inners_.source().connect(inner, span, *bound_device_id_);
    }
}

// What tells the inner backends of a group apart in logs, flight records and profiles.
std::string BackendLofi::label_of(Span span) const
{
    if (single_) return "";
    const int node = lofi_group_node_number(group_.get(), lofi_group_node_of(group_.get(), rank_));
    return span == Span::node ? "node" + std::to_string(node) : name_of(span);
}

void BackendLofi::name(c10d::Backend &inner, Span span) const
{
    const auto label = label_of(span);
    inner.setGroupUid(label.empty() ? getGroupUid() : getGroupUid() + ":" + label);
    inner.setGroupDesc(label.empty() ? getGroupDesc() : getGroupDesc() + " (" + label + ")");
}

BackendLofi::Step BackendLofi::begin(const Call &call)
{
    Step step{{LOFI_DO_REAL, LOFI_ADJUST_NONE, 1, 0, call.root, call.peer}, nullptr, call.device};
    // A real collective is passed on as it is: what is wrong with it, its backend says.
    if (!single_ && lofi_session_scope(session()) == LOFI_SCOPE_NODE) {
        lofi_call asked = LOFI_CALL_INIT;
        asked.collective = call.collective;
        asked.op = call.op;
        asked.is_bool = call.is_bool;
        asked.root = call.root;
        asked.peer = call.peer;
        asked.issuer = issuer();
        asked.scope = LOFI_SCOPE_NODE;
        asked.strict = strict_;
        check(lofi_mirror_plan(group_.get(), &asked, &step.plan));
        if (step.plan.action == LOFI_DO_IMPLICIT) {
            inners_.source().before_implicit(lofi_collective_name(call.collective));
        }
    }
    const bool crosses =
        !single_ && (step.plan.action == LOFI_DO_REAL || step.plan.action == LOFI_DO_IMPLICIT);
    const bool to_peer = call.collective == LOFI_SEND;
    lofi_session_count(session(), crosses ? LOFI_SCOPE_WORLD : LOFI_SCOPE_NODE, -1,
                       crosses ? lofi_cross_bytes(group_.get(), call.collective,
                                                  to_peer ? call.peer : call.root, call.bytes)
                               : 0);
    ++sequence_;
    if (step.is_nothing()) return step;

    step.inner = inners_.get(call.device.type(), step.is_local() ? Span::node : Span::world);
    if (coalescing_ && step.inner->supportsCoalescing()) {
        auto &started = coalescing_->started;
        if (std::find(started.begin(), started.end(), step.inner) == started.end()) {
            step.inner->startCoalescing();
            started.push_back(step.inner);
        }
    }
    return step;
}

// Every inner collective passes here: while coalescing, works that the inner backend does not
// coalesce itself are kept for endCoalescing.
WorkPtr BackendLofi::issued(const Step &step, WorkPtr work)
{
    if (coalescing_ && !step.inner->supportsCoalescing() && work) {
        coalescing_->works.push_back(work);
    }
    return work;
}

WorkPtr BackendLofi::then(const Step &step, WorkPtr work, std::function<void()> finish,
                          c10d::OpType type)
{
    if (coalescing_ && step.inner->supportsCoalescing()) { // it has begun when the group ends
        coalescing_->finish.push_back(std::move(finish));
        coalescing_->device = step.device;
        return work;
    }
    if (!work) { // NCCL's, when nobody asked for one: what follows is ordered by the stream
        at::AutoDispatchBelowADInplaceOrView below_autograd;
        finish();
        return work;
    }
    return issued(
        step, c10::make_intrusive<WorkLofi>(std::move(work), std::move(finish), step.device, type));
}

std::vector<int> BackendLofi::primaries() const
{
    std::vector<int> first(lofi_group_local_size(group_.get()), -1);
    for (int rank = size_ - 1; rank >= 0; --rank) {
        first[lofi_group_place(group_.get(), rank)] = rank;
    }
    return first;
}

WorkPtr BackendLofi::broadcast(Tensors &tensors, const c10d::BroadcastOptions &opts)
{
    auto step = begin({.collective = LOFI_BROADCAST,
                       .device = device_of(tensors),
                       .bytes = bytes_of(tensors),
                       .root = static_cast<int>(opts.rootRank)});
    auto local = opts;
    if (step.is_local()) local.rootRank = step.plan.root;
    return issued(step, step.inner->broadcast(tensors, local));
}

// Adjusts the tensors as the plan says; `opts` becomes what the inner backend is to be given.
template <class Opts>
BackendLofi::Step BackendLofi::begin_all_reduce(Tensors &tensors, Opts &opts)
{
    constexpr bool coalesced = std::is_same_v<Opts, c10d::AllreduceCoalescedOptions>;
    auto step = begin({.collective = LOFI_ALL_REDUCE,
                       .device = device_of(tensors),
                       .bytes = bytes_of(tensors),
                       .op = op_of(opts.reduceOp),
                       .is_bool = holds_bool(tensors)});
    if (auto scaled = scaled_in_sum(step.plan, tensors, opts.reduceOp, *step.inner, coalesced)) {
        opts.reduceOp = *scaled;
    } else {
        adjust_in_place(step.plan, tensors);
        if (step.is_local()) opts.reduceOp = premultiply(tensors, opts.reduceOp, *step.inner);
    }
    return step;
}

WorkPtr BackendLofi::allreduce(Tensors &tensors, const c10d::AllreduceOptions &opts)
{
    auto local = opts;
    auto step = begin_all_reduce(tensors, local);
    return issued(step, step.inner->allreduce(tensors, local));
}

WorkPtr BackendLofi::allreduce_sparse(Tensors &tensors, const c10d::AllreduceOptions &opts)
{
    auto local = opts;
    auto step = begin_all_reduce(tensors, local);
    return issued(step, step.inner->allreduce_sparse(tensors, local));
}

WorkPtr BackendLofi::allreduce_coalesced(Tensors &tensors,
                                         const c10d::AllreduceCoalescedOptions &opts)
{
    auto local = opts;
    auto step = begin_all_reduce(tensors, local);
    return issued(step, step.inner->allreduce_coalesced(tensors, local));
}

WorkPtr BackendLofi::reduce(Tensors &tensors, const c10d::ReduceOptions &opts)
{
    auto step = begin({.collective = LOFI_REDUCE,
                       .device = device_of(tensors),
                       .bytes = bytes_of(tensors),
                       .op = op_of(opts.reduceOp),
                       .is_bool = holds_bool(tensors),
                       .root = static_cast<int>(opts.rootRank)});
    if (step.is_nothing()) return done_work(tensors);
    if (!step.is_local()) return issued(step, step.inner->reduce(tensors, opts));

    auto local = opts;
    local.rootRank = step.plan.root;
    Tensors inputs = tensors;
    if (auto scaled = scaled_in_sum(step.plan, tensors, opts.reduceOp, *step.inner, false)) {
        local.reduceOp = *scaled;
        return issued(step, step.inner->reduce(inputs, local));
    }
    // A reduce writes to the root's tensor only, so the others' must not be scaled in place.
    if (step.plan.adjust != LOFI_ADJUST_NONE && rank_ != opts.rootRank) {
        for (auto &input : inputs)
            input = input.clone();
    }
    adjust_in_place(step.plan, inputs);
    local.reduceOp = premultiply(inputs, opts.reduceOp, *step.inner);
    return issued(step, step.inner->reduce(inputs, local));
}

WorkPtr BackendLofi::allgather(TensorLists &outputs, Tensors &inputs,
                               const c10d::AllgatherOptions &opts)
{
    auto step = begin(
        {.collective = LOFI_ALL_GATHER, .device = device_of(inputs), .bytes = bytes_of(inputs)});
    if (!step.is_local()) return issued(step, step.inner->allgather(outputs, inputs, opts));

    TORCH_CHECK(outputs.size() == 1 && outputs[0].size() == static_cast<size_t>(size_),
                "lofi: all_gather needs one output tensor for each of the ", size_, " members");
    const auto first = primaries();
    TensorLists local(1);
    for (int rank : first)
        local[0].push_back(outputs[0][rank]);
    auto work = step.inner->allgather(local, inputs, opts);
    return then(
        step, work,
        [group = group_, first, all = outputs[0]]() mutable { tile(group.get(), first, all); },
        c10d::OpType::ALLGATHER);
}

WorkPtr BackendLofi::LOFI_ALL_GATHER_SINGLE(at::Tensor &output, at::Tensor &input,
                                            const c10d::AllgatherOptions &opts)
{
    auto step = begin(
        {.collective = LOFI_ALL_GATHER, .device = input.device(), .bytes = bytes_of({input})});
    if (!step.is_local()) {
        return issued(step, step.inner->LOFI_ALL_GATHER_SINGLE(output, input, opts));
    }
    check_slots(group_.get(), output, input);
    auto local = local_output(group_.get(), input);
    auto work = step.inner->LOFI_ALL_GATHER_SINGLE(local, input, opts);
    return then(
        step, work,
        [group = group_, local, output]() mutable { tile_single(group.get(), local, output); },
        c10d::OpType::_ALLGATHER_BASE);
}

// outputs[r][i] is what member r gave as inputs[i].
WorkPtr BackendLofi::allgather_coalesced(TensorLists &outputs, Tensors &inputs,
                                         const c10d::AllgatherOptions &opts)
{
    auto step = begin(
        {.collective = LOFI_ALL_GATHER, .device = device_of(inputs), .bytes = bytes_of(inputs)});
    if (!step.is_local()) {
        return issued(step, step.inner->allgather_coalesced(outputs, inputs, opts));
    }
    TORCH_CHECK(outputs.size() == static_cast<size_t>(size_),
                "lofi: all_gather_coalesced needs one output list for each of the ", size_,
                " members");
    const auto first = primaries();
    TensorLists local;
    for (int rank : first)
        local.push_back(outputs[rank]);
    auto work = step.inner->allgather_coalesced(local, inputs, opts);
    return then(
        step, work,
        [group = group_, first, all = outputs, count = inputs.size()]() {
            for (size_t i = 0; i < count; ++i) {
                Tensors column;
                for (const auto &list : all)
                    column.push_back(list.at(i));
                tile(group.get(), first, column);
            }
        },
        c10d::OpType::ALLGATHER_COALESCED);
}

WorkPtr BackendLofi::LOFI_ALL_GATHER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                                      const c10d::AllgatherOptions &opts)
{
    auto step = begin(
        {.collective = LOFI_ALL_GATHER, .device = device_of(inputs), .bytes = bytes_of(inputs)});
    if (!step.is_local()) {
        return issued(step, step.inner->LOFI_ALL_GATHER_SINGLE_COALESCED(outputs, inputs, opts));
    }
    TORCH_CHECK(outputs.size() == inputs.size(),
                "lofi: a coalesced all_gather needs as many outputs as inputs");
    Tensors local;
    for (size_t i = 0; i < inputs.size(); ++i) {
        check_slots(group_.get(), outputs[i], inputs[i]);
        local.push_back(local_output(group_.get(), inputs[i]));
    }
    auto work = step.inner->LOFI_ALL_GATHER_SINGLE_COALESCED(local, inputs, opts);
    return then(
        step, work,
        [group = group_, local, outputs]() mutable {
            for (size_t i = 0; i < local.size(); ++i) {
                tile_single(group.get(), local[i], outputs[i]);
            }
        },
        c10d::OpType::ALLGATHER_COALESCED);
}

WorkPtr BackendLofi::gather(TensorLists &outputs, Tensors &inputs, const c10d::GatherOptions &opts)
{
    auto step = begin({.collective = LOFI_GATHER,
                       .device = device_of(inputs),
                       .bytes = bytes_of(inputs),
                       .root = static_cast<int>(opts.rootRank)});
    if (step.is_nothing()) return done_work(inputs);
    if (!step.is_local()) return issued(step, step.inner->gather(outputs, inputs, opts));

    auto local_opts = opts;
    local_opts.rootRank = step.plan.root;
    TensorLists local;
    if (rank_ != opts.rootRank) {
        return issued(step, step.inner->gather(local, inputs, local_opts));
    }
    TORCH_CHECK(outputs.size() == 1 && outputs[0].size() == static_cast<size_t>(size_),
                "lofi: gather needs one output tensor for each of the ", size_,
                " members at the root");
    const auto first = primaries();
    local.resize(1);
    for (int rank : first)
        local[0].push_back(outputs[0][rank]);
    auto work = step.inner->gather(local, inputs, local_opts);
    return then(
        step, work,
        [group = group_, first, all = outputs[0]]() mutable { tile(group.get(), first, all); },
        c10d::OpType::GATHER);
}

#ifdef LOFI_HAS_GATHER_SINGLE
WorkPtr BackendLofi::gather_single(at::Tensor &output, at::Tensor &input,
                                   const c10d::GatherOptions &opts)
{
    auto step = begin({.collective = LOFI_GATHER,
                       .device = input.device(),
                       .bytes = bytes_of({input}),
                       .root = static_cast<int>(opts.rootRank)});
    if (step.is_nothing()) return done_work({input});
    if (!step.is_local()) return issued(step, step.inner->gather_single(output, input, opts));

    auto local_opts = opts;
    local_opts.rootRank = step.plan.root;
    if (rank_ != opts.rootRank) {
        return issued(step, step.inner->gather_single(output, input, local_opts));
    }
    check_slots(group_.get(), output, input);
    auto local = local_output(group_.get(), input);
    auto work = step.inner->gather_single(local, input, local_opts);
    return then(
        step, work,
        [group = group_, local, output]() mutable { tile_single(group.get(), local, output); },
        c10d::OpType::GATHER);
}
#endif

WorkPtr BackendLofi::scatter(Tensors &outputs, TensorLists &inputs,
                             const c10d::ScatterOptions &opts)
{
    auto step = begin({.collective = LOFI_SCATTER,
                       .device = device_of(outputs),
                       .bytes = bytes_of(outputs),
                       .root = static_cast<int>(opts.rootRank)});
    return issued(step, step.inner->scatter(outputs, inputs, opts));
}

// reduce_scatter and all_to_all give each member data of its own. Mirrored, a member would act on
// slots that nobody in its node holds, so the plan refuses them while nodes train apart.
WorkPtr BackendLofi::reduce_scatter(Tensors &outputs, TensorLists &inputs,
                                    const c10d::ReduceScatterOptions &opts)
{
    auto step = begin({.collective = LOFI_REDUCE_SCATTER,
                       .device = device_of(outputs),
                       .bytes = bytes_of(front_or_empty(inputs)),
                       .op = op_of(opts.reduceOp)});
    return issued(step, step.inner->reduce_scatter(outputs, inputs, opts));
}

WorkPtr BackendLofi::LOFI_REDUCE_SCATTER_SINGLE(at::Tensor &output, at::Tensor &input,
                                                const c10d::ReduceScatterOptions &opts)
{
    auto step = begin({.collective = LOFI_REDUCE_SCATTER,
                       .device = input.device(),
                       .bytes = bytes_of({input}),
                       .op = op_of(opts.reduceOp)});
    return issued(step, step.inner->LOFI_REDUCE_SCATTER_SINGLE(output, input, opts));
}

WorkPtr BackendLofi::LOFI_REDUCE_SCATTER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                                          const c10d::ReduceScatterOptions &opts)
{
    auto step = begin({.collective = LOFI_REDUCE_SCATTER,
                       .device = device_of(inputs),
                       .bytes = bytes_of(inputs),
                       .op = op_of(opts.reduceOp)});
    return issued(step, step.inner->LOFI_REDUCE_SCATTER_SINGLE_COALESCED(outputs, inputs, opts));
}

WorkPtr BackendLofi::LOFI_ALL_TO_ALL_SINGLE(at::Tensor &output, at::Tensor &input,
                                            std::vector<int64_t> &output_splits,
                                            std::vector<int64_t> &input_splits,
                                            const c10d::AllToAllOptions &opts)
{
    auto step = begin(
        {.collective = LOFI_ALL_TO_ALL, .device = input.device(), .bytes = bytes_of({input})});
    return issued(
        step, step.inner->LOFI_ALL_TO_ALL_SINGLE(output, input, output_splits, input_splits, opts));
}

WorkPtr BackendLofi::alltoall(Tensors &outputs, Tensors &inputs, const c10d::AllToAllOptions &opts)
{
    auto step = begin(
        {.collective = LOFI_ALL_TO_ALL, .device = device_of(inputs), .bytes = bytes_of(inputs)});
    return issued(step, step.inner->alltoall(outputs, inputs, opts));
}

WorkPtr BackendLofi::send(Tensors &tensors, int peer, int tag)
{
    auto step = begin({.collective = LOFI_SEND,
                       .device = device_of(tensors),
                       .bytes = bytes_of(tensors),
                       .peer = peer});
    return issued(step, step.inner->send(tensors, step.is_local() ? step.plan.peer : peer, tag));
}

WorkPtr BackendLofi::recv(Tensors &tensors, int peer, int tag)
{
    auto step = begin({.collective = LOFI_RECV, .device = device_of(tensors), .peer = peer});
    return issued(step, step.inner->recv(tensors, step.is_local() ? step.plan.peer : peer, tag));
}

WorkPtr BackendLofi::recvAnysource(Tensors &tensors, int tag)
{
    auto step = begin({.collective = LOFI_RECV_ANY, .device = device_of(tensors)});
    auto work = step.inner->recvAnysource(tensors, tag);
    if (step.is_local()) {
        const int node = lofi_group_node_of(group_.get(), rank_);
        work = c10::make_intrusive<WorkFromAny>(std::move(work), [group = group_, node](int place) {
            return lofi_group_member(group.get(), node, place);
        });
    }
    return issued(step, work);
}

WorkPtr BackendLofi::barrier(const c10d::BarrierOptions &opts)
{
    auto step = begin({.collective = LOFI_BARRIER,
                       .device = device_of(opts, getBoundDeviceId(), coalesces_cuda_)});
    return issued(step, step.inner->barrier(opts));
}

void BackendLofi::monitoredBarrier(const c10d::BarrierOptions &opts, bool wait_all_ranks)
{
    auto step = begin({.collective = LOFI_BARRIER, .device = at::kCPU});
    step.inner->monitoredBarrier(opts, wait_all_ranks);
}

// The ranks of a node split its communicator together, those in none of the parts included. torch
// asks for each device type that this backend serves (of members since 2.14 only once): a group
// that it has named already is the one of before.
c10::intrusive_ptr<c10d::Backend> BackendLofi::split(const c10::intrusive_ptr<c10d::Store> &store,
                                                     const std::vector<int> &ranks,
                                                     const c10::intrusive_ptr<Options> &opts)
{
    const bool is_again = opts && !opts->group_name.empty() && opts->group_name == last_split_;
    const bool is_connected = bound_device_id_ && !bound_device_id_->is_cpu();
    if (is_again) return last_child_.lock();
    last_split_ = opts ? opts->group_name : "";
    last_child_.reset();
    if (std::find(ranks.begin(), ranks.end(), rank_) == ranks.end()) {
        if (is_connected) leave_split(*bound_device_id_);
        return nullptr;
    }
    std::vector<int> global_ranks;
    for (int rank : ranks) {
        TORCH_CHECK_VALUE(rank >= 0 && rank < size_, "lofi: split names rank ", rank,
                          " of a group of ", size_);
        global_ranks.push_back(lofi_group_global_rank(group_.get(), rank));
    }
    c10::intrusive_ptr<c10d::Backend> parent;
    if (is_connected) parent = inners_.get(bound_device_id_->type(), Span::node);
    auto child =
        inners_.source().split(store, global_ranks, opts ? opts : getBackendOptions(), parent);
    if (is_connected) child->eagerConnectSingleDevice(*bound_device_id_);
    last_child_ = c10::weak_intrusive_ptr<c10d::Backend>(child);
    return child;
}

void BackendLofi::leave_split(at::Device device)
{
    if (device.is_cpu()) return;
    inners_.source().leave_split(inners_.get(device.type(), Span::node), device);
}

// One backend serves cpu and cuda, and c10d does not say for which it coalesces. NCCL's calls are
// grouped by NCCL; gloo's are issued at once and waited for together.
void BackendLofi::startCoalescing()
{
    TORCH_CHECK(coalesces_cuda_, "lofi: coalescing needs a CUDA backend; gloo has none");
    coalescing_.emplace();
}

WorkPtr BackendLofi::endCoalescing()
{
    TORCH_CHECK(coalescing_, "lofi: endCoalescing without startCoalescing");
    Coalescing ended = std::move(*coalescing_);
    coalescing_.reset();
    for (auto &inner : ended.started) {
        if (auto work = inner->endCoalescing()) ended.works.push_back(work);
    }
    if (ended.works.size() == 1 && ended.finish.empty()) return ended.works.front();
    const bool is_asynchronous = !ended.works.empty();
    auto all =
        c10::make_intrusive<WorkAll>(std::move(ended.works), std::move(ended.finish), ended.device);
    if (!is_asynchronous) all->wait(kNoTimeout);
    return all;
}

uint64_t BackendLofi::getSequenceNumberForGroup()
{
    if (!single_) return sequence_;
    auto existing = inners_.existing();
    return existing.empty() ? 0 : existing.front().backend->getSequenceNumberForGroup();
}

void BackendLofi::setTimeout(std::chrono::milliseconds timeout)
{
    options_->timeout = timeout;
    timeout_was_set_ = true;
    for (auto &inner : inners_.existing())
        inner.backend->setTimeout(timeout);
}

void BackendLofi::setGroupUid(const std::string &uid)
{
    c10d::Backend::setGroupUid(uid);
    for (auto &inner : inners_.existing())
        name(*inner.backend, inner.span);
}

void BackendLofi::eagerConnectSingleDevice(at::Device device)
{
    inners_.source().connect(inners_.get(device.type(), Span::node), Span::node, device);
}

void BackendLofi::enableCollectivesTiming()
{
    for (auto &inner : inners_.existing())
        inner.backend->enableCollectivesTiming();
}

void BackendLofi::waitForPendingWorks()
{
    for (auto &inner : inners_.existing())
        inner.backend->waitForPendingWorks();
}

c10d::ErrorType BackendLofi::getError()
{
    for (auto &inner : inners_.existing()) {
        const auto error = inner.backend->getError();
        if (error != c10d::ErrorType::SUCCESS) return error;
    }
    return c10d::ErrorType::SUCCESS;
}

// Communication memory and its accounting are NCCL's: the node's communicator answers.
c10::intrusive_ptr<c10d::Backend> BackendLofi::cuda_inner(const char *what)
{
    TORCH_CHECK(coalesces_cuda_, "lofi: ", what, " needs a CUDA backend; this process has none");
    return inners_.get(c10::DeviceType::CUDA, Span::node);
}

std::shared_ptr<c10::Allocator> BackendLofi::getMemAllocator()
{
    return cuda_inner("getMemAllocator")->getMemAllocator();
}

at::Tensor BackendLofi::allocateTensor(long size, at::TensorOptions options)
{
    return cuda_inner("allocateTensor")->allocateTensor(size, options);
}

bool BackendLofi::supportsTensorAlloc(c10::DeviceIndex device)
{
    return coalesces_cuda_ && cuda_inner("supportsTensorAlloc")->supportsTensorAlloc(device);
}

void BackendLofi::abort()
{
    for (auto &inner : inners_.existing())
        inner.backend->abort();
}

void BackendLofi::shutdown()
{
    for (auto &inner : inners_.existing())
        inner.backend->shutdown();
}

#ifdef LOFI_HAS_SUSPEND
void BackendLofi::suspend()
{
    for (auto &inner : inners_.existing())
        inner.backend->suspend();
}

void BackendLofi::resume()
{
    for (auto &inner : inners_.existing())
        inner.backend->resume();
}

std::unordered_map<std::string, uint64_t> BackendLofi::getMemoryStats()
{
    return cuda_inner("getMemoryStats")->getMemoryStats();
}
#endif

#ifdef LOFI_HAS_EPHEMERAL_TIMEOUT
void BackendLofi::addEphemeralTimeout(const std::chrono::milliseconds &timeout)
{
    for (auto &inner : inners_.existing())
        inner.backend->addEphemeralTimeout(timeout);
}
#endif

#ifdef LOFI_HAS_VIRTUAL_BOUND_DEVICE
void BackendLofi::setBoundDeviceId(std::optional<at::Device> device)
{
    c10d::Backend::setBoundDeviceId(device);
    for (auto &inner : inners_.existing())
        inner.backend->setBoundDeviceId(device);
}
#endif

} // namespace lofi
