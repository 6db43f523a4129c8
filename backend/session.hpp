// SPDX-License-Identifier: MIT
//
// The session of this process, and who issues the collectives of this thread, and what for.
#pragma once

#include "lofi.h"

namespace lofi {

// Never destroyed: gloo's threads may count a collective while the process exits.
lofi_session *session();

// A fresh session, for a process that makes a new default group after destroying one.
void reset_session();

// Returns the former issuer, for the caller to restore. Per thread: DDP issues its broadcasts on
// the thread that runs its forward.
lofi_issuer set_issuer(lofi_issuer issuer);
lofi_issuer issuer();

// The purpose that this thread's collectives are counted for; kByPhase, the default: as the phase
// says. Returns the former one.
constexpr int kByPhase = -1;
int set_purpose(int purpose);
int purpose();

} // namespace lofi
