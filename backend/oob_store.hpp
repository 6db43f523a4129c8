// SPDX-License-Identifier: MIT
//
// liblofi's bootstrap over a c10d Store: one set and world_size gets for each rank and round.
#pragma once

#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "lofi.h"

namespace lofi {

// One exchange of facts among ranks: its keys in the store, and the words that errors use for it.
struct StoreBootstrap {
    c10::intrusive_ptr<c10d::Store> store;
    int rank;
    int world_size;
    std::chrono::milliseconds timeout;
    std::string keys;        // prefix: "lofi/facts"
    std::string when;        // "at start"
    std::string advice;      // what to check when a rank is missing
    std::vector<int> labels; // by which errors call the ranks; empty: 0 ... world_size - 1
    int round = 0;           // exchanges so far: each has keys of its own

    int label(int of) const
    {
        return labels.empty() ? of : labels[of];
    }
};

// A lofi_allgather_fn; `ctx` is a StoreBootstrap. LOFI_TIMED_OUT names the ranks that did not come.
lofi_status store_allgather(void *ctx, const void *mine, size_t bytes, void *all) noexcept;

} // namespace lofi
