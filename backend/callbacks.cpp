// SPDX-License-Identifier: MIT
#include "callbacks.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include <pthread.h>

namespace lofi {
namespace {

struct Threads {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> waiting;
    size_t idle = 0; // threads that wait for work
};

// Never destroyed: its threads outlive main(). A forked child has none of them and begins anew.
Threads *current = nullptr;

Threads &threads()
{
    static const bool prepared = [] {
        current = new Threads;
        pthread_atfork(nullptr, nullptr, [] { current = new Threads; });
        return true;
    }();
    (void)prepared;
    return *current;
}

void serve(Threads &threads)
{
    std::unique_lock<std::mutex> lock(threads.mutex);
    for (;;) {
        while (threads.waiting.empty()) {
            ++threads.idle;
            threads.changed.wait(lock);
            --threads.idle;
        }
        auto function = std::move(threads.waiting.front());
        threads.waiting.pop_front();
        lock.unlock();
        function();
        function = nullptr; // its captures are destroyed now, not at the next call
        lock.lock();
    }
}

} // namespace

void run_callback(std::function<void()> function)
{
    Threads &all = threads();
    std::unique_lock<std::mutex> lock(all.mutex);
    all.waiting.push_back(std::move(function));
    // A thread that was woken counts as idle until it runs: compare with all functions that wait.
    if (all.waiting.size() <= all.idle) {
        all.changed.notify_one();
        return;
    }
    try {
        std::thread(serve, std::ref(all)).detach();
    } catch (const std::system_error &) {
        // No thread can be made. Running it on this thread harms few callbacks; never running it
        // would harm all.
        function = std::move(all.waiting.back());
        all.waiting.pop_back();
        lock.unlock();
        function();
    }
}

} // namespace lofi
