// SPDX-License-Identifier: MIT
//
// liblofi's bootstrap over a c10d Store: one set and world_size gets for each rank.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "lofi.h"

namespace lofi {

struct StoreBootstrap {
    c10::intrusive_ptr<c10d::Store> store;
    int rank;
    int world_size;
    std::chrono::milliseconds timeout;
};

// A lofi_allgather_fn; `ctx` is a StoreBootstrap. LOFI_TIMED_OUT names the ranks that did not come.
lofi_status store_allgather(void *ctx, const void *mine, size_t bytes, void *all) noexcept;

} // namespace lofi
