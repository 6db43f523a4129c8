// SPDX-License-Identifier: MIT
#include "oob_store.hpp"

#include <algorithm>
#include <cstring>

namespace lofi {
namespace {

std::string key_of(const StoreBootstrap &boot, int rank)
{
    return boot.keys + "/" + std::to_string(boot.round) + "/" + std::to_string(rank);
}

std::string missing_ranks(const StoreBootstrap &boot)
{
    constexpr int kMostNamed = 16;
    std::string names;
    int count = 0;
    for (int rank = 0; rank < boot.world_size; ++rank) {
        if (boot.store->check({key_of(boot, rank)})) continue;
        if (count < kMostNamed) names += (count ? ", " : "") + std::to_string(boot.label(rank));
        ++count;
    }
    return count > kMostNamed ? names + ", ..." : names;
}

} // namespace

lofi_status store_allgather(void *ctx, const void *mine, size_t bytes, void *all) noexcept
{
    auto &boot = *static_cast<StoreBootstrap *>(ctx);
    try {
        const auto *begin = static_cast<const uint8_t *>(mine);
        boot.store->set(key_of(boot, boot.rank), std::vector<uint8_t>(begin, begin + bytes));

        std::vector<std::string> keys;
        for (int rank = 0; rank < boot.world_size; ++rank)
            keys.push_back(key_of(boot, rank));
        try {
            boot.store->wait(keys, boot.timeout);
        } catch (const std::exception &) {
            lofi_set_error("Timed out waiting: rank %d waited %lld s %s for rank(s) %s of %d: %s",
                           boot.label(boot.rank),
                           static_cast<long long>(boot.timeout.count() / 1000), boot.when.c_str(),
                           missing_ranks(boot).c_str(), boot.world_size, boot.advice.c_str());
            return LOFI_TIMED_OUT;
        }
        for (int rank = 0; rank < boot.world_size; ++rank) {
            const auto value = boot.store->get(keys[rank]);
            if (value.size() != bytes) {
                lofi_set_error("rank %d runs another release of lofi than rank %d (its record %s "
                               "has %zu bytes, not %zu): install the same on every machine",
                               boot.label(rank), boot.label(boot.rank), boot.when.c_str(),
                               value.size(), bytes);
                return LOFI_ABI;
            }
            std::memcpy(static_cast<uint8_t *>(all) + bytes * rank, value.data(), bytes);
        }
        ++boot.round;
        return LOFI_OK;
    } catch (const std::exception &error) {
        lofi_set_error("the store failed %s: %s", boot.when.c_str(), error.what());
        return LOFI_PEER_LOST;
    }
}

} // namespace lofi
