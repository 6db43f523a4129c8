// SPDX-License-Identifier: MIT
//
// The Work of collectives that run on a lofi_comm. One that ran on the calling thread is done when
// it is made and costs no more than the object. One that was posted completes in the callback of
// its last request, on the communicator's thread or on one that waits for the same communicator;
// if it has a future by then, on a thread for callbacks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

#include <torch/csrc/distributed/c10d/Work.hpp>

#include "lofi.h"
#include "seen.hpp"

namespace lofi {

// Counts how many posted collectives of a communicator are under way. The atomic is waited on.
using InFlight = std::shared_ptr<std::atomic<int>>;

// A posted Work shares this with the callbacks of its requests. The callbacks keep the tensors, and
// the Work does not: they let go of them before anybody learns that the work is done, so that the
// communicator's thread is not the last to hold a tensor of someone who has waited.
class Posted : public c10::intrusive_ptr_target {
  public:
    // `finish` runs when all requests have succeeded, before the work is done.
    Posted(int requests, std::vector<at::Tensor> tensors, std::function<void()> finish, Watch watch)
        : remaining_(requests), tensors_(std::move(tensors)), finish_(std::move(finish)),
          watch_(std::move(watch))
    {
    }

    bool done() const;
    std::exception_ptr error() const;
    void wait_until_done();
    // A future with `value`, from now on if there was none.
    c10::intrusive_ptr<c10::ivalue::Future> future(c10::IValue value, const c10::TypePtr &type);

    // Whether begun() has to be called, on the thread that runs the first request.
    bool is_watched() const
    {
        return !watch_.is_idle();
    }
    void begun() noexcept
    {
        watch_.begun();
    }
    // One request has ended (or could not be posted). True: it was the last, and complete() has to
    // be called, on a thread that may run what users attach to a future if has_future().
    bool request_done(lofi_status status, const char *text) noexcept;
    bool has_future() const;
    void complete() noexcept;

  private:
    mutable std::mutex mutex_;
    std::condition_variable done_changed_;
    bool done_ = false;
    int remaining_;
    std::exception_ptr error_; // the first
    std::vector<at::Tensor> tensors_;
    std::function<void()> finish_;
    Watch watch_;
    c10::intrusive_ptr<c10::ivalue::Future> future_;
    c10::IValue value_; // of future_, until it has it: complete() completes it
};

class WorkComm : public c10d::Work {
  public:
    using TensorLists = std::vector<std::vector<at::Tensor>>;

    // `results` are what the future holds: one list, or one for each member.
    WorkComm(c10d::OpType type, uint64_t sequence, TensorLists results)
        : c10d::Work(-1, type), sequence_(sequence), results_(std::move(results))
    {
    }
    ~WorkComm() override;

    // Posts the tasks, and is done when the last of them is. Throws if the first is refused.
    void post(const std::shared_ptr<lofi_comm> &comm, lofi_task *tasks, int count,
              std::vector<at::Tensor> tensors, std::function<void()> finish, Watch watch,
              InFlight in_flight);

    bool isCompleted() override
    {
        return !posted_ || posted_->done();
    }
    bool isSuccess() const override
    {
        return !posted_ || !posted_->error();
    }
    std::exception_ptr exception() const override
    {
        return posted_ ? posted_->error() : nullptr;
    }
    std::vector<at::Tensor> result() override;
    bool wait(std::chrono::milliseconds timeout) override;
    void abort() override;
    c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
    uint64_t getSequencenumber() const override
    {
        return sequence_;
    }

  private:
    c10::IValue value() const;

    const uint64_t sequence_;
    const TensorLists results_;
    c10::intrusive_ptr<Posted> posted_; // null: it ran on the thread that issued it
    std::vector<lofi_request *> requests_;
    std::weak_ptr<lofi_comm> comm_;
    std::mutex future_mutex_; // guards future_ of a work that was not posted
    c10::intrusive_ptr<c10::ivalue::Future> future_;
};

} // namespace lofi
