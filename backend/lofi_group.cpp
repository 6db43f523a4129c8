// SPDX-License-Identifier: MIT
//
// BackendLofi as a group: splits, coalescing, and the settings that it passes on to its inner
// backends.
#include "backend_lofi.hpp"
#include "work_lofi.hpp"

namespace lofi {

// The ranks of a node split its communicator together, those in none of the parts included. torch
// asks for each device type that this backend serves (of members since 2.14 only once): a group
// that it has named already is the one of before.
c10::intrusive_ptr<c10d::Backend> BackendLofi::split(const c10::intrusive_ptr<c10d::Store> &store,
                                                     const std::vector<int> &ranks,
                                                     const c10::intrusive_ptr<Options> &opts)
{
    const bool is_again = opts && !opts->group_name.empty() && opts->group_name == last_split_;
    const bool is_connected = bound_device_id_ && !bound_device_id_->is_cpu();
    if (is_again) return last_child_.lock();
    last_split_ = opts ? opts->group_name : "";
    last_child_.reset();
    if (std::find(ranks.begin(), ranks.end(), rank_) == ranks.end()) {
        if (is_connected) leave_split(*bound_device_id_);
        return nullptr;
    }
    std::vector<int> global_ranks;
    for (int rank : ranks) {
        TORCH_CHECK_VALUE(rank >= 0 && rank < size_, "lofi: split names rank ", rank,
                          " of a group of ", size_);
        global_ranks.push_back(lofi_group_global_rank(group_.get(), rank));
    }
    c10::intrusive_ptr<c10d::Backend> parent;
    if (is_connected) parent = inners_.get(bound_device_id_->type(), Span::node).backend;
    auto child =
        inners_.source().split(store, global_ranks, opts ? opts : getBackendOptions(), parent);
    if (is_connected) child->eagerConnectSingleDevice(*bound_device_id_);
    last_child_ = c10::weak_intrusive_ptr<c10d::Backend>(child);
    return child;
}

void BackendLofi::leave_split(at::Device device)
{
    if (device.is_cpu()) return;
    inners_.source().leave_split(inners_.get(device.type(), Span::node).backend, device);
}

// One backend serves cpu and cuda, and c10d does not say for which it coalesces. NCCL's calls are
// grouped by NCCL; gloo's are issued at once and waited for together.
void BackendLofi::startCoalescing()
{
    TORCH_CHECK(coalesces_cuda_, "lofi: coalescing needs a CUDA backend; gloo has none");
    coalescing_.emplace();
}

WorkPtr BackendLofi::endCoalescing()
{
    TORCH_CHECK(coalescing_, "lofi: endCoalescing without startCoalescing");
    Coalescing ended = std::move(*coalescing_);
    coalescing_.reset();
    for (auto &inner : ended.started) {
        if (auto work = inner->endCoalescing()) ended.works.push_back(work);
    }
    if (ended.works.size() == 1 && ended.finish.empty()) return ended.works.front();
    const bool is_asynchronous = !ended.works.empty();
    auto all =
        c10::make_intrusive<WorkAll>(std::move(ended.works), std::move(ended.finish), ended.device);
    if (!is_asynchronous) all->wait(kNoTimeout);
    return all;
}

uint64_t BackendLofi::getSequenceNumberForGroup()
{
    if (!single_) return sequence_;
    auto existing = inners_.existing();
    return existing.empty() ? 0 : existing.front().inner->getSequenceNumberForGroup();
}

void BackendLofi::setTimeout(std::chrono::milliseconds timeout)
{
    options_->timeout = timeout;
    timeout_was_set_ = true;
    for (auto &entry : inners_.existing())
        entry.inner->setTimeout(timeout);
}

void BackendLofi::setGroupUid(const std::string &uid)
{
    c10d::Backend::setGroupUid(uid);
    for (auto &entry : inners_.existing())
        name(*entry.inner.backend, entry.span);
}

void BackendLofi::eagerConnectSingleDevice(at::Device device)
{
    inners_.source().connect(inners_.get(device.type(), Span::node).backend, Span::node, device);
}

void BackendLofi::enableCollectivesTiming()
{
    for (auto &entry : inners_.existing())
        entry.inner->enableCollectivesTiming();
}

void BackendLofi::waitForPendingWorks()
{
    for (auto &entry : inners_.existing())
        entry.inner->waitForPendingWorks();
}

c10d::ErrorType BackendLofi::getError()
{
    for (auto &entry : inners_.existing()) {
        const auto error = entry.inner->getError();
        if (error != c10d::ErrorType::SUCCESS) return error;
    }
    return c10d::ErrorType::SUCCESS;
}

// Communication memory and its accounting are NCCL's: the node's communicator answers.
c10::intrusive_ptr<c10d::Backend> BackendLofi::cuda_inner(const char *what)
{
    TORCH_CHECK(coalesces_cuda_, "lofi: ", what, " needs a CUDA backend; this process has none");
    return inners_.get(c10::DeviceType::CUDA, Span::node).backend;
}

std::shared_ptr<c10::Allocator> BackendLofi::getMemAllocator()
{
    return cuda_inner("getMemAllocator")->getMemAllocator();
}

at::Tensor BackendLofi::allocateTensor(long size, at::TensorOptions options)
{
    return cuda_inner("allocateTensor")->allocateTensor(size, options);
}

bool BackendLofi::supportsTensorAlloc(c10::DeviceIndex device)
{
    return coalesces_cuda_ && cuda_inner("supportsTensorAlloc")->supportsTensorAlloc(device);
}

void BackendLofi::abort()
{
    for (auto &entry : inners_.existing())
        entry.inner->abort();
}

void BackendLofi::shutdown()
{
    for (auto &entry : inners_.existing())
        entry.inner->shutdown();
}

#ifdef LOFI_HAS_SUSPEND
void BackendLofi::suspend()
{
    for (auto &entry : inners_.existing())
        entry.inner->suspend();
}

void BackendLofi::resume()
{
    for (auto &entry : inners_.existing())
        entry.inner->resume();
}

std::unordered_map<std::string, uint64_t> BackendLofi::getMemoryStats()
{
    return cuda_inner("getMemoryStats")->getMemoryStats();
}
#endif

#ifdef LOFI_HAS_EPHEMERAL_TIMEOUT
void BackendLofi::addEphemeralTimeout(const std::chrono::milliseconds &timeout)
{
    for (auto &entry : inners_.existing())
        entry.inner->addEphemeralTimeout(timeout);
}
#endif

#ifdef LOFI_HAS_VIRTUAL_BOUND_DEVICE
void BackendLofi::setBoundDeviceId(std::optional<at::Device> device)
{
    c10d::Backend::setBoundDeviceId(device);
    for (auto &entry : inners_.existing())
        entry.inner->setBoundDeviceId(device);
}
#endif

} // namespace lofi
