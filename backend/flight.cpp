// SPDX-License-Identifier: MIT
#include "flight.hpp"

#include "seen.hpp"
#include "torch_compat.hpp"

#ifdef LOFI_HAS_FLIGHT_RECORDER

#include <atomic>
#include <thread>

#include <c10/util/ApproximateClock.h>
#include <c10/util/thread_name.h>
#include <torch/csrc/distributed/c10d/FlightRecorder.hpp>

namespace lofi {
namespace {

// The members that write entries are templates that torch does not export, and their source needs a
// header that its wheel lacks. So the entries are written here, into the ring that torch reads.
using Recorder = c10d::FlightRecorder<c10::Event>;

// As gloo counts them: from 0, in the order of creation.
std::atomic<size_t> next_group{0};

// The entry, or null if a later one has taken its place. The lock is held.
Recorder::Entry *find(Recorder &recorder, size_t id, size_t epoch)
{
    const auto first = recorder.reset_epoch_start_idx_.find(epoch);
    if (first == recorder.reset_epoch_start_idx_.end()) return nullptr;
    const size_t place = (first->second + id) % recorder.max_entries_;
    if (place >= recorder.entries_.size()) return nullptr;
    auto &entry = recorder.entries_[place];
    return entry.id_ == id && entry.reset_epoch_ == epoch ? &entry : nullptr;
}

// The entry to write next. One that is there already keeps its memory.
Recorder::Entry &next_entry(Recorder &recorder)
{
    const size_t place = recorder.next_;
    recorder.next_ = (place + 1) % recorder.max_entries_;
    if (place >= recorder.entries_.size()) return recorder.entries_.emplace_back();
    auto &entry = recorder.entries_[place];
    entry.start_ = entry.end_ = nullptr;
    entry.isP2P_ = entry.retired_ = false;
    entry.duration_.reset();
    entry.time_discovered_started_.reset();
    entry.time_discovered_completed_.reset();
    entry.input_dims_.clear();
    entry.input_dtypes_.clear();
    entry.output_dims_.clear();
    entry.output_dtypes_.clear();
    entry.sizes_.clear();
    return entry;
}

// As it was at the thread's first collective: asking is a system call.
const std::string &thread_name()
{
    static const thread_local std::string name = c10::getThreadName();
    return name;
}

// Input sizes come first, then output sizes, in one list; a gather's outputs as one tensor with the
// ranks as its first dimension, as gloo has them.
void describe_tensors(Recorder::Entry &entry, const Seen &seen, int ranks)
{
    for (const auto &input : seen.inputs) {
        entry.input_dtypes_.push_back(input.scalar_type());
        entry.input_dims_.push_back(input.dim());
        entry.sizes_.append(input.sizes().begin(), input.sizes().end());
    }
    const bool stacked = seen.gathers();
    for (const auto &output : seen.outputs) {
        entry.output_dtypes_.push_back(output.scalar_type());
        entry.output_dims_.push_back(output.dim() + (stacked ? 1 : 0));
        if (stacked) entry.sizes_.push_back(ranks);
        entry.sizes_.append(output.sizes().begin(), output.sizes().end());
    }
}

} // namespace

struct Flight::State {
    const c10d::Backend &group;
    Recorder &recorder;
    const std::vector<uint64_t> ranks;
    const size_t id = next_group++;
    const std::shared_ptr<c10d::ProcessGroupStatus> status =
        std::make_shared<c10d::ProcessGroupStatus>();
    std::tuple<std::string, std::string> name = {}; // under which the ranks are in the recorder

    // The lock is held. A group gets its name after it is made, and may be described later still.
    const std::tuple<std::string, std::string> &current_name()
    {
        const auto &uid = group.getGroupUid(), &desc = group.getGroupDesc();
        if (std::get<0>(name) != uid || std::get<1>(name) != desc) {
            recorder.pg_name_to_ranks_.erase(name);
            name = {uid, desc};
            recorder.pg_name_to_ranks_[name] = ranks;
        }
        return name;
    }
};

Flight::Flight(const c10d::Backend &group, std::vector<uint64_t> ranks)
{
    auto *recorder = c10d::getFlightRecorder(c10d::kDefaultFRBackend);
    if (recorder == nullptr || !recorder->enabled_) return;
    state_ = std::make_unique<State>(State{group, *recorder, std::move(ranks)});
}

Flight::~Flight() = default;

Flight::Entry Flight::add(const Seen &seen)
{
    auto &recorder = state_->recorder;
    // Before the lock: it may have to wait for the interpreter.
    auto traceback = torch::CapturedTraceback::gather(true, true, recorder.capture_cpp_stack_);
    const std::lock_guard<std::mutex> lock(recorder.mutex_);
    auto &entry = next_entry(recorder);
    entry.id_ = recorder.id_++;
    entry.reset_epoch_ = recorder.reset_epoch_;
    entry.pg_id_ = state_->id;
    entry.pg_name_ = state_->current_name();
    entry.collective_seq_id_ = entry.op_id_ = seen.sequence;
    entry.profiling_name_ = title_of(seen.type);
    entry.traceback_ = std::move(traceback);
    entry.time_created_ = c10::getTime();
    entry.timeout_ms_ = seen.timeout.count();
    describe_tensors(entry, seen, state_->group.getSize());
    entry.thread_id_ = std::this_thread::get_id();
    entry.thread_name_ = thread_name();
    recorder.all_pg_status_.try_emplace(state_->id, state_->status);
    Entry added{this, entry.id_, entry.reset_epoch_, static_cast<int64_t>(seen.sequence)};
    state_->status->lastEnqueuedSeq = added.sequence;
    if (!seen.is_async) { // it begins now: that saves a second look
        added.begun = std::chrono::steady_clock::now();
        entry.time_discovered_started_ = entry.time_created_;
        state_->status->lastStartedSeq = added.sequence;
    }
    return added;
}

void Flight::begun(Entry &entry)
{
    if (entry.begun != std::chrono::steady_clock::time_point{}) return;
    entry.begun = std::chrono::steady_clock::now();
    const std::lock_guard<std::mutex> lock(state_->recorder.mutex_);
    state_->status->lastStartedSeq = entry.sequence;
    if (auto *found = find(state_->recorder, entry.id, entry.epoch))
        found->time_discovered_started_ = c10::getTime();
}

// One that has failed is retired without being completed: that is how torch knows it.
void Flight::ended(const Entry &entry, bool succeeded)
{
    const std::chrono::duration<float, std::milli> took =
        std::chrono::steady_clock::now() - entry.begun;
    const std::lock_guard<std::mutex> lock(state_->recorder.mutex_);
    if (succeeded) state_->status->lastCompletedSeq = entry.sequence;
    auto *found = find(state_->recorder, entry.id, entry.epoch);
    if (found == nullptr) return;
    found->retired_ = true;
    if (!succeeded) return;
    found->duration_ = took.count();
    found->time_discovered_completed_ = c10::getTime();
}

} // namespace lofi

#else

namespace lofi {

struct Flight::State {};

Flight::Flight(const c10d::Backend &, std::vector<uint64_t>)
{
}

Flight::~Flight() = default;

Flight::Entry Flight::add(const Seen &)
{
    return {};
}

void Flight::begun(Entry &)
{
}

void Flight::ended(const Entry &, bool)
{
}

} // namespace lofi

#endif
