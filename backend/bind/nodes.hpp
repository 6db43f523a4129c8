// SPDX-License-Identifier: MIT
//
// The Python classes of topologies and groups, which other bindings take as arguments.
#pragma once

#include <memory>

#include <c10/util/Exception.h>

#include "lofi.h"

namespace lofi {

struct Topology {
    explicit Topology(lofi_topology *made) : handle(made, lofi_topology_destroy)
    {
    }
    std::shared_ptr<lofi_topology> handle;
};

struct Group {
    explicit Group(lofi_group *made) : handle(made, lofi_group_destroy)
    {
    }
    std::shared_ptr<lofi_group> handle;
    const lofi_group *get() const
    {
        return handle.get();
    }
    int member(int rank) const
    {
        TORCH_CHECK_INDEX(rank >= 0 && rank < lofi_group_size(get()), "lofi: the group has ",
                          lofi_group_size(get()), " members, there is no rank ", rank);
        return rank;
    }
};

} // namespace lofi
