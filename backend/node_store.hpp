// SPDX-License-Identifier: MIT
//
// A store whose prefix can't be removed. NCCL's process group unwraps every PrefixStore of the
// store that it is given, and writes a note of an error into the store below. The processes of all
// groups read it there and end after a while, those of healthy nodes too. It can't unwrap this
// class.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

namespace lofi {

class NodeStore : public c10d::Store {
    using Bytes = std::vector<uint8_t>;
    using Keys = std::vector<std::string>;

  public:
    explicit NodeStore(c10::intrusive_ptr<c10d::Store> below)
        : c10d::Store(below->getTimeout()), below_(std::move(below))
    {
    }
    c10::intrusive_ptr<c10d::Store> clone() override
    {
        return c10::make_intrusive<NodeStore>(below_->clone());
    }
    void set(const std::string &key, const Bytes &value) override
    {
        below_->set(key, value);
    }
    Bytes compareSet(const std::string &key, const Bytes &expected, const Bytes &wanted) override
    {
        return below_->compareSet(key, expected, wanted);
    }
    Bytes get(const std::string &key) override
    {
        return below_->get(key);
    }
    int64_t add(const std::string &key, int64_t value) override
    {
        return below_->add(key, value);
    }
    bool deleteKey(const std::string &key) override
    {
        return below_->deleteKey(key);
    }
    bool check(const Keys &keys) override
    {
        return below_->check(keys);
    }
    int64_t getNumKeys() override
    {
        return below_->getNumKeys();
    }
    void wait(const Keys &keys) override
    {
        below_->wait(keys);
    }
    void wait(const Keys &keys, const std::chrono::milliseconds &timeout) override
    {
        below_->wait(keys, timeout);
    }
    const std::chrono::milliseconds &getTimeout() const noexcept override
    {
        return below_->getTimeout();
    }
    void setTimeout(const std::chrono::milliseconds &timeout) override
    {
        below_->setTimeout(timeout);
    }
    void append(const std::string &key, const Bytes &value) override
    {
        below_->append(key, value);
    }
    std::vector<Bytes> multiGet(const Keys &keys) override
    {
        return below_->multiGet(keys);
    }
    void multiSet(const Keys &keys, const std::vector<Bytes> &values) override
    {
        below_->multiSet(keys, values);
    }
    bool hasExtendedApi() const override
    {
        return below_->hasExtendedApi();
    }

  private:
    c10::intrusive_ptr<c10d::Store> below_;
};

} // namespace lofi
