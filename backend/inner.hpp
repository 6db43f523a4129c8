// SPDX-License-Identifier: MIT
//
// The seam to the backends that move bytes: a gloo or NCCL group, as torch ships them, of the ranks
// that take part, or a BackendComm around the gloo group. Which class that is, and with which
// options, is decided in Python, where ProcessGroupGloo can be made (its headers are not in the
// torch wheel) and where a test can hand in a double.
#pragma once

#include <array>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace lofi {

// The ranks of a group that an inner backend connects.
enum class Span : uint8_t {
    node,  // the members of the own node, ranked by place
    world, // all members, ranked as in the group
    column // the members with the own place, one in each node, ranked by node
};
constexpr size_t kSpanCount = 3;
const char *name_of(Span span);

// How an inner backend reduces, which is known when it is made.
enum class Kind : uint8_t {
    comm, // a BackendComm
    nccl, // torch's own, or a wrapper of its name
    other // gloo, or a double of it
};

class BackendComm;

struct Inner {
    c10::intrusive_ptr<c10d::Backend> backend;
    Kind kind = Kind::other;
    // The backend as what it is; null for the other kinds.
    BackendComm *comm() const;
    c10d::Backend *operator->() const
    {
        return backend.get();
    }
};

// Makes backends on demand. Called without locks held by lofi; may block for the rendezvous, as
// the constructor of the backend would.
class InnerSource {
  public:
    virtual ~InnerSource() = default;
    virtual c10::intrusive_ptr<c10d::Backend> make(c10::DeviceType device, Span span) = 0;
    // A lofi backend for some of the members, for ProcessGroup::splitGroup. `parent`: null, or the
    // backend of the node that is connected to a device, to be split too.
    virtual c10::intrusive_ptr<c10d::Backend>
    split(const c10::intrusive_ptr<c10d::Store> &store, const std::vector<int> &global_ranks,
          const c10::intrusive_ptr<c10d::Backend::Options> &options,
          const c10::intrusive_ptr<c10d::Backend> &parent) = 0;
    // Connects a backend to its device before the first collective needs it.
    virtual void connect(const c10::intrusive_ptr<c10d::Backend> &backend, Span span,
                         at::Device device) = 0;
    // Other ranks of the node split `parent`, and this one is in none of the parts.
    virtual void leave_split(const c10::intrusive_ptr<c10d::Backend> &parent,
                             at::Device device) = 0;
    // Called when a mirrored all_gather of features is issued: a loss may see them K times. Returns
    // whether it wants to be called again.
    virtual bool note_gather() = 0;
    // Called before a collective of the user crosses nodes while these train apart: compares a
    // tag with the other nodes, warns once per call site. Throws to refuse.
    virtual void before_implicit(const std::string &collective, uint64_t bytes) = 0;
    // Drops the backends of a group that ends, which waits for their threads.
    virtual void drop(std::vector<c10::intrusive_ptr<c10d::Backend>> backends)
    {
        backends.clear();
    }
};

// The inner backends of one group, made when first needed, one for each device type and span.
class Inners {
  public:
    // `single`: the group lies inside one node, so that node and world are the same backend.
    // `dress` brings a new backend up to what was set on the group before it was made.
    using Dress =
        std::function<void(const c10::intrusive_ptr<c10d::Backend> &, c10::DeviceType, Span)>;
    Inners(std::unique_ptr<InnerSource> source, bool single, Dress dress)
        : source_(std::move(source)), single_(single), dress_(std::move(dress))
    {
    }
    ~Inners();

    Inner get(c10::DeviceType device, Span span);
    InnerSource &source()
    {
        return *source_;
    }
    struct Entry {
        c10::DeviceType device;
        Span span;
        Inner inner;
    };
    // The backends that exist, in the order of their creation.
    std::vector<Entry> existing() const;
    // Ends those of a device type that connect nodes, with what they hold; made again when needed.
    void release(c10::DeviceType device);

  private:
    std::optional<Inner> find(c10::DeviceType device, Span span) const;

    std::unique_ptr<InnerSource> source_;
    const bool single_;
    const Dress dress_;
    mutable std::mutex mutex_; // guards entries_; never held while a backend is made
    std::mutex making_;        // one backend is made at a time
    std::vector<Entry> entries_;
};

} // namespace lofi
