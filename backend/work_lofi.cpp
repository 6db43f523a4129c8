// SPDX-License-Identifier: MIT
#include "work_lofi.hpp"

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>

namespace lofi {

WorkLofi::WorkLofi(c10::intrusive_ptr<c10d::Work> inner, std::function<void()> finish,
                   c10d::OpType type)
    : c10d::Work(-1, type), inner_(std::move(inner))
{
    auto future = inner_->getFuture();
    future_ = future->then(
        [finish = std::move(finish)](c10::ivalue::Future &done) -> c10::IValue {
            auto value = done.value(); // throws what the collective threw
            at::AutoDispatchBelowADInplaceOrView below_autograd;
            finish();
            return value;
        },
        future->elementType());
}

std::exception_ptr WorkLofi::exception() const
{
    return future_->completed() && future_->hasError() ? future_->exception_ptr() : nullptr;
}

void WorkLofi::synchronize()
{
    inner_->synchronize();
    future_->wait();
}

bool WorkLofi::wait(std::chrono::milliseconds timeout)
{
    // First the inner wait: it has the deadline, and the exceptions that users know.
    if (!inner_->wait(timeout)) return false;
    future_->wait();
    if (future_->hasError()) std::rethrow_exception(future_->exception_ptr());
    return true;
}

bool WorkAll::isCompleted()
{
    const bool done =
        std::all_of(works_.begin(), works_.end(), [](auto &w) { return w->isCompleted(); });
    if (done) finish();
    return done;
}

bool WorkAll::isSuccess() const
{
    return std::all_of(works_.begin(), works_.end(), [](auto &w) { return w->isSuccess(); });
}

void WorkAll::synchronize()
{
    for (auto &work : works_)
        work->synchronize();
    finish();
}

bool WorkAll::wait(std::chrono::milliseconds timeout)
{
    bool done = true;
    for (auto &work : works_)
        done = work->wait(timeout) && done;
    if (done) finish();
    return done;
}

void WorkAll::finish()
{
    std::lock_guard<std::mutex> lock(mutex_);
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (auto &step : finish_)
        step();
    finish_.clear();
}

void WorkAll::abort()
{
    for (auto &work : works_)
        work->abort();
}

c10::intrusive_ptr<c10d::Work> done_work(const std::vector<at::Tensor> &tensors)
{
    std::vector<c10::Device> devices;
    if (!tensors.empty() && !tensors.front().is_cpu()) {
        devices.push_back(tensors.front().device());
    }
    auto future = c10::make_intrusive<c10::ivalue::Future>(
        c10::ListType::create(c10::TensorType::get()), devices);
    future->markCompleted(c10::IValue(tensors));
    return c10d::Work::create_from_future(future);
}

} // namespace lofi
