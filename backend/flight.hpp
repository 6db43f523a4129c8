// SPDX-License-Identifier: MIT
//
// Entries in torch's flight recorder, the ring of a process's last collectives that is dumped when a
// job hangs. They stand among gloo's, in the instance that torch dumps when none is named.
//
// Since 2.15 torch exports where that instance is; before, what goes through shared memory has no
// entries.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace lofi {

struct Seen;

// The recorder as one group writes to it.
class Flight {
  public:
    // `group` outlives this; `ranks` are its members', in the world.
    Flight(const c10d::Backend &group, std::vector<uint64_t> ranks);
    ~Flight();

    bool is_on() const
    {
        return state_ != nullptr;
    }

    struct Entry {
        Flight *flight = nullptr; // null: there is none
        size_t id = 0;
        size_t epoch = 0; // each reset of the recorder begins one
        int64_t sequence = 0;
        std::chrono::steady_clock::time_point begun = {};
    };
    // Any thread may call these.
    Entry add(const Seen &seen);
    void begun(Entry &entry);
    void ended(const Entry &entry, bool succeeded);

  private:
    struct State;
    std::unique_ptr<State> state_; // null: it is off
};

} // namespace lofi
