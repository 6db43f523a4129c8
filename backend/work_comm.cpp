// SPDX-License-Identifier: MIT
#include "work_comm.hpp"

#include <algorithm>
#include <climits>

#include <ATen/core/LegacyTypeDispatch.h>

#include "callbacks.hpp"
#include "check.hpp"

namespace lofi {
namespace {

// A callback's share in a work, and in the count of what is under way.
struct Share {
    c10::intrusive_ptr<Posted> posted;
    InFlight in_flight;
};

void end(Share &share)
{
    share.posted.reset();
    share.in_flight->fetch_sub(1);
    share.in_flight->notify_all();
}

void on_begun(void *ctx) noexcept
{
    static_cast<Posted *>(ctx)->begun();
}

void on_done(void *ctx, lofi_status status, const char *text) noexcept
{
    std::unique_ptr<Share> own(static_cast<Share *>(ctx));
    Share share = std::move(*own);
    const auto posted = share.posted;
    const bool last = posted->request_done(status, text);
    // Before anything of the user's runs or ends: what it lets go of may be the group, whose
    // destructor waits for what is under way.
    end(share);
    if (!last) return;
    if (posted->has_future()) {
        run_callback([posted] { posted->complete(); });
    } else {
        posted->complete();
    }
}

std::exception_ptr exception_of(lofi_status status, const char *text)
{
    try {
        raise(status, text);
    } catch (...) {
        return std::current_exception();
    }
}

} // namespace

bool Posted::done() const
{
    std::lock_guard<std::mutex> lock(mutex_);
    return done_;
}

std::exception_ptr Posted::error() const
{
    std::lock_guard<std::mutex> lock(mutex_);
    return done_ ? error_ : nullptr;
}

void Posted::wait_until_done()
{
    std::unique_lock<std::mutex> lock(mutex_);
    done_changed_.wait(lock, [this] { return done_; });
    if (error_) std::rethrow_exception(error_);
}

c10::intrusive_ptr<c10::ivalue::Future> Posted::future(c10::IValue value, const c10::TypePtr &type)
{
    std::unique_lock<std::mutex> lock(mutex_);
    if (future_) return future_;
    future_ = c10::make_intrusive<c10::ivalue::Future>(type);
    auto future = future_;
    if (remaining_ > 0) {
        value_ = std::move(value);
        return future;
    }
    // Too late for the callbacks, which are about to be through: they saw no future.
    done_changed_.wait(lock, [this] { return done_; });
    lock.unlock();
    if (error_) {
        future->setError(error_);
    } else {
        future->markCompleted(std::move(value));
    }
    return future;
}

bool Posted::has_future() const
{
    std::lock_guard<std::mutex> lock(mutex_);
    return !value_.isNone();
}

bool Posted::request_done(lofi_status status, const char *text) noexcept
{
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (status != LOFI_OK && !error_) error_ = exception_of(status, text);
        if (remaining_ > 1) {
            --remaining_;
            return false;
        }
    }
    // The last one is alone with these members until it says that none remains.
    std::exception_ptr failed;
    if (!error_ && finish_) {
        try {
            at::AutoDispatchBelowADInplaceOrView below_autograd;
            finish_();
        } catch (...) {
            failed = std::current_exception();
        }
    }
    finish_ = nullptr;
    watch_.ended(!error_ && !failed);
    tensors_.clear();
    std::lock_guard<std::mutex> lock(mutex_);
    if (failed) error_ = failed;
    remaining_ = 0;
    return true;
}

void Posted::complete() noexcept
{
    if (has_future()) {
        try {
            if (error_) {
                value_ = c10::IValue();
                future_->setError(error_);
            } else {
                future_->markCompleted(std::move(value_));
            }
        } catch (const std::exception &failed) {
            lofi_log(LOFI_LOG_ERROR, "a callback of a collective's future failed: %s",
                     failed.what());
        } catch (...) {
            lofi_log(LOFI_LOG_ERROR, "a callback of a collective's future failed");
        }
    }
    std::lock_guard<std::mutex> lock(mutex_);
    done_ = true;
    done_changed_.notify_all();
}

WorkComm::~WorkComm()
{
    for (lofi_request *request : requests_)
        lofi_request_destroy(request);
}

void WorkComm::post(const std::shared_ptr<lofi_comm> &comm, lofi_task *tasks, int count,
                    std::vector<at::Tensor> tensors, std::function<void()> finish, Watch watch,
                    InFlight in_flight)
{
    comm_ = comm;
    auto posted =
        c10::make_intrusive<Posted>(count, std::move(tensors), std::move(finish), std::move(watch));
    if (posted->is_watched()) {
        tasks[0].begun = on_begun;
        tasks[0].begun_ctx = posted.get();
    }
    requests_.reserve(count);
    for (int i = 0; i < count; ++i) {
        auto share = std::make_unique<Share>(Share{posted, in_flight});
        in_flight->fetch_add(1);
        lofi_request *request = nullptr;
        const auto status = lofi_post(comm.get(), &tasks[i], on_done, share.get(), &request);
        if (status == LOFI_OK) {
            share.release(); // on_done has it
            requests_.push_back(request);
            continue;
        }
        const std::string text = lofi_last_error();
        end(*share);
        if (i == 0) raise(status, text.c_str());
        for (; i < count; ++i) {
            if (posted->request_done(status, text.c_str())) posted->complete();
        }
    }
    posted_ = std::move(posted);
}

bool WorkComm::wait(std::chrono::milliseconds timeout)
{
    if (!posted_) return true;
    const auto comm = comm_.lock(); // it must not end while this thread is in it
    using clock = std::chrono::steady_clock;
    const bool forever = timeout <= kNoTimeout;
    const auto deadline = clock::now() + (forever ? kNoTimeout : timeout);
    for (lofi_request *request : requests_) {
        int left = -1;
        if (!forever) {
            const auto rest =
                std::chrono::duration_cast<std::chrono::milliseconds>(deadline - clock::now());
            left = static_cast<int>(std::clamp<int64_t>(rest.count(), 0, INT_MAX));
        }
        const auto status = comm ? lofi_request_wait(request, left) : lofi_request_test(request);
        // gloo's words: scripts may look for them. The collective goes on.
        TORCH_CHECK(status != LOFI_IN_PROGRESS, "Operation timed out!");
        check(status);
    }
    posted_->wait_until_done(); // the callbacks of the requests, which are done
    return true;
}

void WorkComm::abort()
{
    if (auto comm = comm_.lock()) lofi_comm_abort(comm.get());
}

std::vector<at::Tensor> WorkComm::result()
{
    TORCH_CHECK(isCompleted(), "lofi: a work has no result before it is completed: wait() first");
    TORCH_CHECK(results_.size() <= 1,
                "work result does not support list of lists, use .getFuture() and value()");
    return results_.empty() ? std::vector<at::Tensor>() : results_.front();
}

c10::IValue WorkComm::value() const
{
    if (results_.size() > 1) return c10::IValue(results_);
    return c10::IValue(results_.empty() ? std::vector<at::Tensor>() : results_.front());
}

c10::intrusive_ptr<c10::ivalue::Future> WorkComm::getFuture()
{
    c10::TypePtr type = c10::ListType::create(c10::TensorType::get());
    if (results_.size() > 1) type = c10::ListType::create(type);
    if (posted_) return posted_->future(value(), type);
    std::lock_guard<std::mutex> lock(future_mutex_);
    if (!future_) {
        future_ = c10::make_intrusive<c10::ivalue::Future>(type);
        future_->markCompleted(value());
    }
    return future_;
}

} // namespace lofi
