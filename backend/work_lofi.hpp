// SPDX-License-Identifier: MIT
//
// Work that has something left to do when the inner collective is done: copying results to the
// slots of the members' images. The rest runs where the inner future completes (gloo's worker
// thread; for CUDA on a stream ordered behind the collective), so that nothing blocks the caller.
// Collectives with nothing left to do return the inner Work itself.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include <c10/core/Event.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

namespace lofi {

// A point in the current stream of a device. On the CPU nothing is enqueued, and it is always
// passed.
class Mark {
  public:
    void set(at::Device device);
    bool is_passed() const;
    void block_current_stream() const;

  private:
    std::optional<c10::Event> event_;
    at::Device device_ = at::kCPU;
};

class WorkLofi : public c10d::Work {
  public:
    // `device`: of the tensors.
    WorkLofi(c10::intrusive_ptr<c10d::Work> inner, std::function<void()> finish, at::Device device,
             c10d::OpType type);

    bool isCompleted() override
    {
        // The future of a collective on CUDA is complete as soon as it is enqueued.
        return inner_->isCompleted() && future_->completed() &&
               (future_->hasError() || mark_->is_passed());
    }
    bool isSuccess() const override
    {
        return future_->completed() && !future_->hasError();
    }
    std::exception_ptr exception() const override;
    int sourceRank() const override
    {
        return inner_->sourceRank();
    }
    std::vector<at::Tensor> result() override
    {
        return inner_->result();
    }
    void synchronize() override;
    bool wait(std::chrono::milliseconds timeout) override;
    void blockCurrentStream() override;
    void abort() override
    {
        inner_->abort();
    }
    c10::intrusive_ptr<c10::ivalue::Future> getFuture() override
    {
        return future_;
    }
    c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override
    {
        return inner_->getFutureResult();
    }
    float getDuration() const override
    {
        return inner_->getDuration();
    }
    uint64_t getSequencenumber() const override
    {
        return inner_->getSequencenumber();
    }

  private:
    const c10::intrusive_ptr<c10d::Work> inner_;
    const std::shared_ptr<Mark> mark_; // behind what was left to do
    c10::intrusive_ptr<c10::ivalue::Future> future_;
};

// A receive from any member of the node reports the sender's rank in the node's group; this
// reports its rank in the whole group.
class WorkFromAny : public c10d::Work {
  public:
    WorkFromAny(c10::intrusive_ptr<c10d::Work> inner, std::function<int(int)> group_rank)
        : c10d::Work(-1, c10d::OpType::RECVANYSOURCE), inner_(std::move(inner)),
          group_rank_(std::move(group_rank))
    {
    }

    bool isCompleted() override
    {
        return inner_->isCompleted();
    }
    bool isSuccess() const override
    {
        return inner_->isSuccess();
    }
    std::exception_ptr exception() const override
    {
        return inner_->exception();
    }
    int sourceRank() const override
    {
        return group_rank_(inner_->sourceRank());
    }
    void synchronize() override
    {
        inner_->synchronize();
    }
    bool wait(std::chrono::milliseconds timeout) override
    {
        return inner_->wait(timeout);
    }
    void blockCurrentStream() override
    {
        inner_->blockCurrentStream();
    }
    void abort() override
    {
        inner_->abort();
    }
    c10::intrusive_ptr<c10::ivalue::Future> getFuture() override
    {
        return inner_->getFuture();
    }
    c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override
    {
        return inner_->getFutureResult();
    }
    uint64_t getSequencenumber() const override
    {
        return inner_->getSequencenumber();
    }

  private:
    c10::intrusive_ptr<c10d::Work> inner_;
    std::function<int(int)> group_rank_;
};

// Several works as one, for what was coalesced on one device; `finish` runs when whoever waits
// first has waited for them: on CUDA, in the order of that thread's stream.
class WorkAll : public c10d::Work {
  public:
    WorkAll(std::vector<c10::intrusive_ptr<c10d::Work>> works,
            std::vector<std::function<void()>> finish, at::Device device)
        : c10d::Work(-1, c10d::OpType::COALESCED), works_(std::move(works)), device_(device),
          finish_(std::move(finish))
    {
    }

    bool isCompleted() override;
    bool isSuccess() const override;
    void synchronize() override;
    bool wait(std::chrono::milliseconds timeout) override;
    void blockCurrentStream() override
    {
        synchronize(); // NCCL alone coalesces, and its works do not block the host
    }
    void abort() override;

  private:
    enum class State : uint8_t { waiting, running, finished };
    void finish();
    void run(std::unique_lock<std::mutex> &lock);

    const std::vector<c10::intrusive_ptr<c10d::Work>> works_;
    const at::Device device_;
    // Guards the rest; not held while `finish_` runs, since a tensor that ends may need the GIL.
    std::mutex mutex_;
    std::condition_variable changed_;
    State state_ = State::waiting;
    std::vector<std::function<void()>> finish_;
    Mark mark_; // behind what was left to do
};

// Work that is done: for a collective in which this node takes no part.
c10::intrusive_ptr<c10d::Work> done_work(const std::vector<at::Tensor> &tensors);

} // namespace lofi
