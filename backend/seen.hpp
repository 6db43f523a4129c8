// SPDX-License-Identifier: MIT
//
// A collective of a communicator as others see it: torch's profiler, its execution traces and its
// flight recorder. gloo shows its own there; lofi's are of the same kinds, named "lofi:all_reduce"
// where gloo's are "gloo:all_reduce".
#pragma once

#include <functional>
#include <memory>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "flight.hpp"

namespace lofi {

// What is told of it. All is borrowed for the call.
struct Seen {
    c10d::OpType type;
    at::TensorList inputs;
    at::TensorList outputs; // of a gather: what one rank gives, for each of its tensors
    bool is_async;
    std::chrono::milliseconds timeout;
    uint64_t sequence; // of the group

    bool gathers() const
    {
        return type == c10d::OpType::ALLGATHER || type == c10d::OpType::ALLGATHER_COALESCED ||
               type == c10d::OpType::GATHER;
    }
};

// "lofi:all_reduce", and so on, in static storage.
const char *title_of(c10d::OpType type);

// The event of a collective in a profile. It begins and ends on any threads, and belongs to the
// profile of the one that issued the collective.
class ProfilerEvent;

// One collective's event and flight entry, as far as anybody looks. It has failed if it is destroyed
// before its end.
class Watch {
  public:
    Watch();
    // On the thread that issues the collective. `flight` outlives it.
    Watch(const Seen &seen, Flight &flight);
    Watch(Watch &&other) noexcept;
    ~Watch();

    bool is_idle() const
    {
        return !event_ && entry_.flight == nullptr;
    }
    // On the thread that runs the collective; not at all if it fails before.
    void begun() noexcept;
    // On the thread that sees its end, before anybody else learns of it.
    void ended(bool succeeded) noexcept;

  private:
    std::unique_ptr<ProfilerEvent> event_;
    Flight::Entry entry_;
};

// The event, without duration, of a collective in which this node takes no part.
void show_absence(c10d::OpType type, at::TensorList inputs);

// Whether operators of this thread are profiled, or traced.
bool is_profiled();

// Runs `issue` within the event record_param_comms, by which traces know who communicates what.
c10::intrusive_ptr<c10d::Work>
with_param_comms(const Seen &seen, const c10d::Backend &group,
                 const std::vector<uint64_t> &global_ranks,
                 const std::function<c10::intrusive_ptr<c10d::Work>()> &issue);

} // namespace lofi
