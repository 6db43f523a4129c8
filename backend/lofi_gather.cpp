// SPDX-License-Identifier: MIT
//
// The gathers of BackendLofi. A mirrored gather runs among the members of this node; each result is
// then repeated in the slots of the member's images in the other nodes.
#include <c10/core/impl/VirtualGuardImpl.h>

#include "backend_lofi.hpp"
#include "convert.hpp"
#include "drop_in.hpp"
#include "session.hpp"
#include "work_lofi.hpp"

namespace lofi {
namespace {

bool are_features(const at::Tensor &tensor)
{
    return tensor.dim() >= 2 && at::isFloatingType(tensor.scalar_type());
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

std::vector<int> BackendLofi::primaries() const
{
    std::vector<int> first(lofi_group_local_size(group_.get()), -1);
    for (int rank = size_ - 1; rank >= 0; --rank) {
        first[lofi_group_place(group_.get(), rank)] = rank;
    }
    return first;
}

WorkPtr BackendLofi::allgather_uneven(const Tensors &outputs, const at::Tensor &input,
                                      const c10d::AllgatherOptions &opts)
{
    const auto first = primaries();
    const bool is_mirrored = !single_ && lofi_session_scope(session()) == LOFI_SCOPE_NODE;
    for (int rank = 0; is_mirrored && rank < size_; ++rank) {
        const int from = first[lofi_group_place(group_.get(), rank)];
        TORCH_CHECK(outputs[rank].numel() == outputs[from].numel(),
                    "lofi: all_gather while nodes "
                    "train apart: the output of member ",
                    rank, " has ", outputs[rank].numel(), " elements, that of its image ", from,
                    " ", outputs[from].numel(), "; gather among the ranks of a node, or pad");
    }
    const auto longest = longest_of(outputs);
    TensorLists padded(1);
    for (const auto &output : outputs)
        padded[0].push_back(at::empty({longest}, output.options()));
    Tensors in{pad(input, longest)};
    auto work = allgather(padded, in, opts);
    auto finish = [padded = padded[0], outputs] {
        for (size_t i = 0; i < outputs.size(); ++i)
            unpad(padded[i], outputs[i]);
    };
    return after(std::move(work), std::move(finish), outputs, c10d::OpType::ALLGATHER);
}

WorkPtr BackendLofi::allgather(TensorLists &outputs, Tensors &inputs,
                               const c10d::AllgatherOptions &opts)
{
    if (need_views(inputs)) {
        auto lists = as_views(outputs);
        auto views = as_views(inputs);
        return allgather(lists, views, opts);
    }
    if (outputs.size() == 1 && outputs[0].size() == static_cast<size_t>(size_) &&
        inputs.size() == 1 && are_uneven(outputs[0]) &&
        inputs[0].numel() == outputs[0][rank_].numel()) {
        return allgather_uneven(outputs[0], inputs[0], opts);
    }
    auto step = begin({.collective = LOFI_ALL_GATHER,
                       .device = device_of(inputs),
                       .bytes = bytes_of(inputs),
                       .holds_features = !inputs.empty() && are_features(inputs.front())});
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
    if (needs_view(input)) {
        auto out = as_view(output), in = as_view(input);
        return LOFI_ALL_GATHER_SINGLE(out, in, opts);
    }
    auto step = begin({.collective = LOFI_ALL_GATHER,
                       .device = input.device(),
                       .bytes = bytes_of({input}),
                       .holds_features = are_features(input)});
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
    if (need_views(inputs)) {
        auto lists = as_views(outputs);
        auto views = as_views(inputs);
        return allgather_coalesced(lists, views, opts);
    }
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
    if (need_views(inputs)) {
        auto out = as_views(outputs), in = as_views(inputs);
        return LOFI_ALL_GATHER_SINGLE_COALESCED(out, in, opts);
    }
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
    if (need_views(inputs)) {
        auto lists = as_views(outputs);
        auto views = as_views(inputs);
        return gather(lists, views, opts);
    }
    auto step = begin({.collective = LOFI_GATHER,
                       .device = device_of(inputs),
                       .bytes = bytes_of(inputs),
                       .root = static_cast<int>(opts.rootRank)});
    if (step.is_nothing()) return absent(inputs, c10d::OpType::GATHER);
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
    if (needs_view(input)) {
        auto out = as_view(output), in = as_view(input);
        return gather_single(out, in, opts);
    }
    auto step = begin({.collective = LOFI_GATHER,
                       .device = input.device(),
                       .bytes = bytes_of({input}),
                       .root = static_cast<int>(opts.rootRank)});
    if (step.is_nothing()) return absent({input}, c10d::OpType::GATHER);
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

} // namespace lofi
