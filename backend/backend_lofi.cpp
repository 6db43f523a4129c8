// SPDX-License-Identifier: MIT
#include "backend_lofi.hpp"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "adjust.hpp"
#include "backend_comm.hpp"
#include "check.hpp"
#include "convert.hpp"
#include "drop_in.hpp"
#include "seen.hpp"
#include "session.hpp"
#include "work_lofi.hpp"

namespace lofi {
namespace {

bool holds_bool(const Tensors &tensors)
{
    return !tensors.empty() && tensors.front().scalar_type() == at::kBool;
}

// Some of gloo's works have none: what follows them can't run by itself.
bool has_future(c10d::Work &work)
{
    try {
        return work.getFuture() != nullptr;
    } catch (const c10::Error &) {
        return false;
    }
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

// The label tells the inner backends of a group apart in logs, flight records and profiles.
std::string BackendLofi::label_of(Span span) const
{
    if (single_) return "";
    const int node = lofi_group_node_number(group_.get(), lofi_group_node_of(group_.get(), rank_));
    return span == Span::node ? "node" + std::to_string(node) : name_of(span);
}

void BackendLofi::name(c10d::Backend &inner, Span span) const
{
    const auto label = label_of(span);
    inner.setGroupDesc(label.empty() ? getGroupDesc() : getGroupDesc() + " (" + label + ")");
    inner.setGroupUid(label.empty() ? getGroupUid() : getGroupUid() + ":" + label);
}

// torch describes a group after it has named it, and does not say when: no function is called that
// could be overridden.
void BackendLofi::describe()
{
    is_described_ = true;
    for (auto &entry : inners_.existing())
        name(*entry.inner.backend, entry.span);
}

BackendLofi::Step BackendLofi::begin(const Call &call)
{
    if (!is_described_ && !getGroupDesc().empty()) describe();
    Step step{{LOFI_DO_REAL, LOFI_ADJUST_NONE, 1, 0, call.root, call.peer}, {}, call.device};
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
            inners_.source().before_implicit(lofi_collective_name(call.collective), call.bytes);
        }
        if (call.holds_features && watches_gathers_) {
            watches_gathers_ = inners_.source().note_gather();
        }
    }
    const bool crosses =
        !single_ && (step.plan.action == LOFI_DO_REAL || step.plan.action == LOFI_DO_IMPLICIT);
    const bool to_peer = call.collective == LOFI_SEND;
    lofi_session_count(session(), crosses ? LOFI_SCOPE_WORLD : LOFI_SCOPE_NODE, purpose(),
                       crosses ? lofi_cross_bytes(group_.get(), call.collective,
                                                  to_peer ? call.peer : call.root, call.bytes)
                               : 0);
    ++sequence_;
    if (step.is_nothing()) return step;

    step.inner = inners_.get(call.device.type(), step.is_local() ? Span::node : Span::world);
    if (coalescing_ && step.inner->supportsCoalescing()) {
        auto &started = coalescing_->started;
        if (std::find(started.begin(), started.end(), step.inner.backend) == started.end()) {
            step.inner->startCoalescing();
            started.push_back(step.inner.backend);
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

// For a collective to a root in another node: nothing to do, but to be seen.
WorkPtr BackendLofi::absent(const Tensors &tensors, c10d::OpType type) const
{
    show_absence(type, tensors);
    return done_work(tensors);
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

std::optional<Detour> BackendLofi::detour(const Tensors &tensors, const c10d::ReduceOp &op)
{
    if (tensors.empty() || !on_cpu(tensors.front())) return std::nullopt;
    bool scales = false; // the inner backend multiplies while it sums, and rounds once
    if (op.op_ == c10d::ReduceOp::PREMUL_SUM) {
        const bool is_local = single_ || lofi_session_scope(session()) == LOFI_SCOPE_NODE;
        const auto inner = inners_.get(c10::kCPU, is_local ? Span::node : Span::world);
        scales = inner.kind != Kind::other && arithmetic_of(tensors.front().scalar_type());
    }
    return Detour::of(tensors.front(), op, size_, scales);
}

// The work of a collective with `finish` after it.
WorkPtr BackendLofi::after(WorkPtr work, std::function<void()> finish, const Tensors &outputs,
                           c10d::OpType type)
{
    if (!has_future(*work)) {
        work->wait();
        finish();
        return done_work(outputs);
    }
    auto whole =
        c10::make_intrusive<WorkLofi>(std::move(work), std::move(finish), device_of(outputs), type);
    if (coalescing_) coalescing_->works.push_back(whole);
    return whole;
}

WorkPtr BackendLofi::through(const Detour &detour, WorkPtr work, Tensors results, Tensors outputs,
                             c10d::OpType type)
{
    auto finish = [detour, results = std::move(results), outputs] {
        detour.finish(results, outputs);
    };
    return after(std::move(work), std::move(finish), outputs, type);
}

WorkPtr BackendLofi::broadcast(Tensors &tensors, const c10d::BroadcastOptions &opts)
{
    if (need_views(tensors)) {
        auto views = as_views(tensors);
        return broadcast(views, opts);
    }
    auto step = begin({.collective = LOFI_BROADCAST,
                       .device = device_of(tensors),
                       .bytes = bytes_of(tensors),
                       .root = static_cast<int>(opts.rootRank)});
    auto local = opts;
    if (step.is_local()) local.rootRank = step.plan.root;
    return issued(step, step.inner->broadcast(tensors, local));
}

BackendLofi::Step BackendLofi::begin_all_reduce(const Tensors &tensors, const c10d::ReduceOp &op)
{
    return begin({.collective = LOFI_ALL_REDUCE,
                  .device = device_of(tensors),
                  .bytes = bytes_of(tensors),
                  .op = op_of(op),
                  .is_bool = holds_bool(tensors)});
}

WorkPtr BackendLofi::allreduce(Tensors &tensors, const c10d::AllreduceOptions &opts)
{
    if (const auto way = detour(tensors, opts.reduceOp)) {
        auto inputs = way->inputs(tensors);
        auto work = allreduce(inputs, way->through(opts));
        return through(*way, std::move(work), inputs, tensors, c10d::OpType::ALLREDUCE);
    }
    auto step = begin_all_reduce(tensors, opts.reduceOp);
    if (auto *comm = step.inner.comm()) {
        const auto reduction = adjusted_reduction(step.plan, tensors, opts.reduceOp, false);
        return issued(step, comm->all_reduce(tensors, opts, reduction));
    }
    auto local = opts;
    local.reduceOp = adjusted_op(step.plan, tensors, opts.reduceOp, step.inner);
    return issued(step, step.inner->allreduce(tensors, local));
}

WorkPtr BackendLofi::allreduce_sparse(Tensors &tensors, const c10d::AllreduceOptions &opts)
{
    auto step = begin_all_reduce(tensors, opts.reduceOp);
    auto local = opts;
    local.reduceOp = adjusted_op(step.plan, tensors, opts.reduceOp, step.inner);
    return issued(step, step.inner->allreduce_sparse(tensors, local));
}

WorkPtr BackendLofi::allreduce_coalesced(Tensors &tensors,
                                         const c10d::AllreduceCoalescedOptions &opts)
{
    if (const auto way = detour(tensors, opts.reduceOp)) {
        auto inputs = way->inputs(tensors);
        auto work = allreduce_coalesced(inputs, way->through(opts));
        return through(*way, std::move(work), inputs, tensors, c10d::OpType::ALLREDUCE_COALESCED);
    }
    auto step = begin_all_reduce(tensors, opts.reduceOp);
    if (auto *comm = step.inner.comm()) {
        const auto reduction = adjusted_reduction(step.plan, tensors, opts.reduceOp, true);
        return issued(step, comm->all_reduce_coalesced(tensors, opts, reduction));
    }
    auto local = opts;
    local.reduceOp = adjusted_op(step.plan, tensors, opts.reduceOp, step.inner);
    return issued(step, step.inner->allreduce_coalesced(tensors, local));
}

WorkPtr BackendLofi::reduce(Tensors &tensors, const c10d::ReduceOptions &opts)
{
    if (const auto way = detour(tensors, opts.reduceOp)) {
        auto inputs = way->inputs(tensors);
        auto work = reduce(inputs, way->through(opts));
        if (rank_ != opts.rootRank) return work;
        return through(*way, std::move(work), inputs, tensors, c10d::OpType::REDUCE);
    }
    auto step = begin({.collective = LOFI_REDUCE,
                       .device = device_of(tensors),
                       .bytes = bytes_of(tensors),
                       .op = op_of(opts.reduceOp),
                       .is_bool = holds_bool(tensors),
                       .root = static_cast<int>(opts.rootRank)});
    if (step.is_nothing()) return absent(tensors, c10d::OpType::REDUCE);
    if (!step.is_local()) return issued(step, step.inner->reduce(tensors, opts));

    auto local = opts;
    local.rootRank = step.plan.root;
    Tensors inputs = tensors;
    // A reduce writes to the root's tensor only, so the others' must not be scaled in place.
    const auto write = rank_ == opts.rootRank ? Write::in_place : Write::to_copies;
    if (auto *comm = step.inner.comm()) {
        const auto reduction = adjusted_reduction(step.plan, inputs, opts.reduceOp, false, write);
        return issued(step, comm->reduce_to_root(inputs, local, reduction));
    }
    local.reduceOp = adjusted_op(step.plan, inputs, opts.reduceOp, step.inner, write);
    return issued(step, step.inner->reduce(inputs, local));
}

WorkPtr BackendLofi::scatter(Tensors &outputs, TensorLists &inputs,
                             const c10d::ScatterOptions &opts)
{
    if (need_views(outputs)) {
        auto views = as_views(outputs);
        auto lists = as_views(inputs);
        return scatter(views, lists, opts);
    }
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
    if (const auto way = detour(outputs, opts.reduceOp)) {
        auto results = way->outputs(outputs);
        auto lists = way->inputs(inputs);
        auto work = reduce_scatter(results, lists, way->through(opts));
        return through(*way, std::move(work), results, outputs, c10d::OpType::REDUCE_SCATTER);
    }
    if (outputs.size() == 1 && inputs.size() == 1 && are_uneven(inputs.front())) {
        return reduce_scatter_uneven(outputs.front(), inputs.front(), opts);
    }
    auto step = begin({.collective = LOFI_REDUCE_SCATTER,
                       .device = device_of(outputs),
                       .bytes = bytes_of(front_or_empty(inputs)),
                       .op = op_of(opts.reduceOp)});
    return issued(step, step.inner->reduce_scatter(outputs, inputs, opts));
}

WorkPtr BackendLofi::reduce_scatter_uneven(const at::Tensor &output, const Tensors &inputs,
                                           const c10d::ReduceScatterOptions &opts)
{
    const auto longest = longest_of(inputs);
    TensorLists padded(1);
    for (const auto &input : inputs)
        padded[0].push_back(pad(input, longest));
    Tensors results{at::empty({longest}, output.options())};
    auto work = reduce_scatter(results, padded, opts);
    return after(
        std::move(work), [result = results[0], output] { unpad(result, output); }, {output},
        c10d::OpType::REDUCE_SCATTER);
}

WorkPtr BackendLofi::LOFI_REDUCE_SCATTER_SINGLE(at::Tensor &output, at::Tensor &input,
                                                const c10d::ReduceScatterOptions &opts)
{
    if (const auto way = detour({output}, opts.reduceOp)) {
        auto results = way->outputs({output});
        auto in = way->inputs(Tensors{input});
        auto work = LOFI_REDUCE_SCATTER_SINGLE(results[0], in[0], way->through(opts));
        return through(*way, std::move(work), results, {output}, c10d::OpType::REDUCE_SCATTER);
    }
    auto step = begin({.collective = LOFI_REDUCE_SCATTER,
                       .device = input.device(),
                       .bytes = bytes_of({input}),
                       .op = op_of(opts.reduceOp)});
    return issued(step, step.inner->LOFI_REDUCE_SCATTER_SINGLE(output, input, opts));
}

WorkPtr BackendLofi::LOFI_REDUCE_SCATTER_SINGLE_COALESCED(Tensors &outputs, Tensors &inputs,
                                                          const c10d::ReduceScatterOptions &opts)
{
    if (const auto way = detour(outputs, opts.reduceOp)) {
        auto results = way->outputs(outputs);
        auto in = way->inputs(inputs);
        auto work = LOFI_REDUCE_SCATTER_SINGLE_COALESCED(results, in, way->through(opts));
        return through(*way, std::move(work), results, outputs, c10d::OpType::REDUCE_SCATTER);
    }
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
    if (needs_view(input)) {
        auto out = as_view(output), in = as_view(input);
        return LOFI_ALL_TO_ALL_SINGLE(out, in, output_splits, input_splits, opts);
    }
    auto step = begin(
        {.collective = LOFI_ALL_TO_ALL, .device = input.device(), .bytes = bytes_of({input})});
    return issued(
        step, step.inner->LOFI_ALL_TO_ALL_SINGLE(output, input, output_splits, input_splits, opts));
}

WorkPtr BackendLofi::alltoall(Tensors &outputs, Tensors &inputs, const c10d::AllToAllOptions &opts)
{
    if (need_views(inputs)) {
        auto out = as_views(outputs), in = as_views(inputs);
        return alltoall(out, in, opts);
    }
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

} // namespace lofi
