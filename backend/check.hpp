// SPDX-License-Identifier: MIT
//
// A status of liblofi becomes a C++ exception here and nowhere else. torch turns these into
// Python's: ValueError, NotImplementedError (a RuntimeError), DistBackendError, RuntimeError.
#pragma once

#include <c10/util/Exception.h>

#include "lofi.h"

namespace lofi {

[[noreturn]] inline void raise(lofi_status status, const char *text)
{
    const std::string message = std::string("lofi: ") + (*text ? text : lofi_status_text(status));
    switch (status) {
    case LOFI_INVALID:
        C10_THROW_ERROR(ValueError, message);
    case LOFI_UNSUPPORTED:
        C10_THROW_ERROR(NotImplementedError, message);
    case LOFI_TIMED_OUT:
    case LOFI_PEER_LOST:
        C10_THROW_ERROR(DistBackendError, message);
    default:
        C10_THROW_ERROR(Error, message);
    }
}

[[noreturn]] inline void raise(lofi_status status)
{
    raise(status, lofi_last_error());
}

inline void check(lofi_status status)
{
    if (status != LOFI_OK) raise(status);
}

} // namespace lofi
