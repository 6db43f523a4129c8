// SPDX-License-Identifier: MIT
//
// Threads that complete futures. A callback that a user attaches to a future may block, even until
// another collective is done (PowerSGD's hook does), so it must not run on the thread of a
// communicator.
#pragma once

#include <functional>

namespace lofi {

// Runs `function` on a thread that nothing else occupies: an idle one, or a new one. It must not
// throw. The threads stay for later calls, and end with the process.
void run_callback(std::function<void()> function);

} // namespace lofi
