// SPDX-License-Identifier: MIT
#include "work_lofi.hpp"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/ScopeExit.h>

#include <algorithm>

namespace lofi {

void Mark::set(at::Device device)
{
    device_ = device;
    if (device.is_cpu()) return;
    event_.emplace(device.type());
    event_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

bool Mark::is_passed() const
{
    return !event_ || event_->query();
}

void Mark::block_current_stream() const
{
    if (event_) event_->block(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

WorkLofi::WorkLofi(c10::intrusive_ptr<c10d::Work> inner, std::function<void()> finish,
                   at::Device device, c10d::OpType type)
    : c10d::Work(-1, type), inner_(std::move(inner)), mark_(std::make_shared<Mark>())
{
    auto future = inner_->getFuture();
    future_ = future->then(
        [finish = std::move(finish), mark = mark_, device](c10::ivalue::Future &done) {
            auto value = done.value(); // throws what the collective threw
            at::AutoDispatchBelowADInplaceOrView below_autograd;
            finish();
            mark->set(device);
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

void WorkLofi::blockCurrentStream()
{
    if (future_->devices().empty()) {
        c10d::Work::blockCurrentStream(); // until the future is complete
    } else {
        synchronize();
    }
}

bool WorkAll::isCompleted()
{
    const bool done =
        std::all_of(works_.begin(), works_.end(), [](auto &w) { return w->isCompleted(); });
    if (!done) return false;
    // The calling thread may hold the GIL, which the steps that another thread runs may need:
    // waiting for that thread here could wait for ever.
    std::unique_lock<std::mutex> lock(mutex_);
    if (state_ == State::running) return false;
    if (state_ == State::waiting) run(lock);
    return mark_.is_passed();
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
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return state_ != State::running; });
    if (state_ == State::waiting) return run(lock);
    mark_.block_current_stream(); // it was another thread's, or stream's
}

void WorkAll::run(std::unique_lock<std::mutex> &lock)
{
    auto steps = std::move(finish_);
    const auto end = c10::make_scope_exit([&] {
        lock.lock();
        state_ = State::finished;
        changed_.notify_all();
    });
    state_ = State::running;
    lock.unlock();
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (auto &step : steps)
        step();
    if (!steps.empty()) mark_.set(device_);
    steps.clear();
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
