// SPDX-License-Identifier: MIT
#include "inner.hpp"

#include "backend_comm.hpp"

namespace lofi {
namespace {

Kind kind_of(const c10d::Backend &backend)
{
    if (dynamic_cast<const BackendComm *>(&backend) != nullptr) return Kind::comm;
    return backend.getBackendName() == "nccl" ? Kind::nccl : Kind::other;
}

} // namespace

BackendComm *Inner::comm() const
{
    return kind == Kind::comm ? static_cast<BackendComm *>(backend.get()) : nullptr;
}

const char *name_of(Span span)
{
    static constexpr std::array<const char *, kSpanCount> names{"node", "world", "column"};
    return names[static_cast<size_t>(span)];
}

Inners::~Inners()
{
    std::vector<c10::intrusive_ptr<c10d::Backend>> backends;
    for (Entry &entry : entries_)
        backends.push_back(std::move(entry.inner.backend));
    source_->drop(std::move(backends));
}

std::optional<Inner> Inners::find(c10::DeviceType device, Span span) const
{
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Entry &entry : entries_) {
        if (entry.device == device && entry.span == span) return entry.inner;
    }
    return std::nullopt;
}

Inner Inners::get(c10::DeviceType device, Span span)
{
    if (single_ && span == Span::world) span = Span::node;
    if (const auto found = find(device, span)) return *found;

    // Two threads that both need a backend must not both rendezvous: the other ranks make one.
    std::lock_guard<std::mutex> making(making_);
    if (const auto found = find(device, span)) return *found;
    auto backend = source_->make(device, span);
    dress_(backend, device, span);
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.push_back({device, span, {backend, kind_of(*backend)}});
    return entries_.back().inner;
}

std::vector<Inners::Entry> Inners::existing() const
{
    std::lock_guard<std::mutex> lock(mutex_);
    return entries_;
}

void Inners::release(c10::DeviceType device)
{
    if (single_) return;
    std::vector<c10::intrusive_ptr<c10d::Backend>> ended;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        std::erase_if(entries_, [device, &ended](const Entry &entry) {
            const bool ends = entry.device == device && entry.span != Span::node;
            if (ends) ended.push_back(entry.inner.backend);
            return ends;
        });
    }
    for (auto &backend : ended)
        backend->shutdown();
    source_->drop(std::move(ended));
}

} // namespace lofi
