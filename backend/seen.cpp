// SPDX-License-Identifier: MIT
#include "seen.hpp"

#include <ATen/ThreadLocalState.h>
#include <ATen/record_function.h>
#include <torch/csrc/distributed/c10d/ParamCommsUtils.hpp>

#include "torch_compat.hpp"

namespace lofi {
namespace {

struct Names {
    const char *title;  // gloo's, but for the prefix
    const char *traced; // NCCL's: what reads traces knows these
};

Names names_of(c10d::OpType type)
{
    switch (type) {
    case c10d::OpType::BROADCAST:
        return {"lofi:broadcast", "broadcast"};
    case c10d::OpType::ALLREDUCE:
        return {"lofi:all_reduce", "allreduce"};
    case c10d::OpType::ALLREDUCE_COALESCED:
        return {"lofi:all_reduce", "allreduce_coalesced"};
    case c10d::OpType::REDUCE:
        return {"lofi:reduce", "reduce"};
    case c10d::OpType::ALLGATHER:
        return {"lofi:all_gather", "all_gather"};
    case c10d::OpType::ALLGATHER_COALESCED:
        return {"lofi:all_gather", "all_gather_into_tensor_coalesced"};
    case c10d::OpType::GATHER:
        return {"lofi:gather", "gather"};
    case c10d::OpType::REDUCE_SCATTER:
        return {"lofi:reduce_scatter", "reduce_scatter"};
    case c10d::OpType::_REDUCE_SCATTER_BASE:
        return {"lofi:reduce_scatter", "_reduce_scatter_base"};
    case c10d::OpType::ALLTOALL:
        return {"lofi:all_to_all", "all_to_all"};
    case c10d::OpType::BARRIER:
        return {"lofi:barrier", "barrier"};
    default:
        return {"lofi:collective", "collective"};
    }
}

std::vector<c10::IValue> values_of(at::TensorList tensors)
{
    return std::vector<c10::IValue>(tensors.begin(), tensors.end());
}

int64_t elements_of(at::TensorList tensors)
{
    int64_t count = 0;
    for (const auto &tensor : tensors)
        count += tensor.numel();
    return count;
}

// The first of the ranks and the distance between them, if all are equally far apart; else -1 and -1.
std::pair<int, int> layout_of(const std::vector<uint64_t> &ranks)
{
    if (ranks.empty()) return {-1, -1};
    const auto first = static_cast<int>(ranks[0]);
    const int stride = ranks.size() > 1 ? static_cast<int>(ranks[1]) - first : 1;
    for (size_t i = 0; i < ranks.size(); ++i) {
        if (static_cast<int>(ranks[i]) != first + static_cast<int>(i) * stride) return {-1, -1};
    }
    return {first, stride};
}

} // namespace

const char *title_of(c10d::OpType type)
{
    return names_of(type).title;
}

class ProfilerEvent {
  public:
    // Null if no profiler runs.
    static std::unique_ptr<ProfilerEvent> of(const Seen &seen)
    {
        auto callbacks = at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE);
        if (!callbacks) return nullptr;
        return std::make_unique<ProfilerEvent>(std::move(*callbacks), seen);
    }

    ProfilerEvent(at::StepCallbacks &&callbacks, const Seen &seen)
        : function_(std::move(callbacks)), title_(title_of(seen.type))
    {
        function_._setAsync(); // it may end on another thread
        if (function_.needsInputs()) inputs_ = values_of(seen.inputs);
    }

    void begin()
    {
        at::ThreadLocalStateGuard issuer(state_);
        function_.before(title_, c10::ArrayRef<const c10::IValue>(inputs_.data(), inputs_.size()));
        inputs_.clear(); // a collective lets go of its tensors before its end is known
    }
    void end()
    {
        at::ThreadLocalStateGuard issuer(state_);
        inputs_.clear();
        function_.end();
    }

  private:
    const at::ThreadLocalState state_; // of the issuing thread, whose profile it belongs to
    at::RecordFunction function_;
    const char *const title_;
    std::vector<c10::IValue> inputs_;
};

Watch::Watch() = default;

Watch::Watch(const Seen &seen, Flight &flight) : event_(ProfilerEvent::of(seen))
{
    if (flight.is_on()) entry_ = flight.add(seen);
}

Watch::Watch(Watch &&other) noexcept
    : event_(std::move(other.event_)), entry_(std::exchange(other.entry_, {}))
{
}

Watch::~Watch()
{
    if (!is_idle()) ended(false);
}

// What goes wrong in a profiler is no failure of the collective.
void Watch::begun() noexcept
try {
    if (entry_.flight) entry_.flight->begun(entry_);
    if (event_) event_->begin();
} catch (...) {
}

void Watch::ended(bool succeeded) noexcept
try {
    if (event_) event_->end();
    event_.reset();
    if (entry_.flight) entry_.flight->ended(entry_, succeeded);
    entry_ = {};
} catch (...) {
}

void show_absence(c10d::OpType type, at::TensorList inputs)
{
    const auto event = ProfilerEvent::of({type, inputs, {}, false, {}, 0});
    if (!event) return;
    event->begin();
    event->end();
}

bool is_profiled()
{
    return at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION).has_value();
}

c10::intrusive_ptr<c10d::Work>
with_param_comms(const Seen &seen, const c10d::Backend &group,
                 const std::vector<uint64_t> &global_ranks,
                 const std::function<c10::intrusive_ptr<c10d::Work>()> &issue)
{
    const auto name = std::make_tuple(group.getGroupUid(), group.getGroupDesc());
    const auto sequence = std::make_tuple(static_cast<int64_t>(seen.sequence), false);
    const auto type = seen.inputs.empty() ? at::kByte : seen.inputs[0].scalar_type();
    const int64_t slots = seen.gathers() ? group.getSize() : 1;
    const auto [first, stride] = layout_of(global_ranks);
    const std::vector<int64_t> no_splits;
    LOFI_RECORD_PARAM_COMMS(seen.is_async, sequence, name, seen.inputs.vec(), seen.outputs.vec(),
                            group.getRank(), names_of(seen.type).traced, elements_of(seen.inputs),
                            elements_of(seen.outputs) * slots, type, no_splits, no_splits, first,
                            stride, group.getSize());
    return issue();
}

} // namespace lofi
