// SPDX-License-Identifier: MIT
#include "session.hpp"

#include <atomic>
#include <utility>

#include "check.hpp"

namespace lofi {
namespace {

lofi_session *create_session()
{
    lofi_session *made = nullptr;
    check(lofi_session_create(&made));
    return made;
}

std::atomic<lofi_session *> &slot()
{
    static std::atomic<lofi_session *> current{create_session()};
    return current;
}

thread_local lofi_issuer current_issuer = LOFI_BY_USER;
thread_local int current_purpose = kByPhase;

} // namespace

lofi_session *session()
{
    return slot().load(std::memory_order_acquire);
}

// The old session is left alone: another thread may be about to count in it. It is 300 bytes.
void reset_session()
{
    slot().store(create_session(), std::memory_order_release);
}

lofi_issuer set_issuer(lofi_issuer issuer)
{
    return std::exchange(current_issuer, issuer);
}

lofi_issuer issuer()
{
    return current_issuer;
}

int set_purpose(int purpose)
{
    return std::exchange(current_purpose, purpose);
}

int purpose()
{
    return current_purpose;
}

} // namespace lofi
