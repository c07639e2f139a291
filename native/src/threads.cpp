#include "threads.hpp"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace keyglue {
namespace {

// How long a thread looks for work, or the caller for the others' end, before it sleeps: some 20 microseconds.
constexpr int spins = 1000;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

struct Pool {
    std::mutex in_use;  // held by the caller whose work runs
    std::mutex mutex;
    std::condition_variable wake;
    int size = 0;  // threads that wait for work, without callers

    // The work; `turn` changes when there is new work for workers 1 to `wanted`.
    std::atomic<unsigned> turn{0};
    int wanted = 0, count = 0;
    Body body = nullptr;
    void* context = nullptr;
    std::atomic<int> next{0}, running{0};

    void work(int worker) {
        for (int index = next.fetch_add(1); index < count; index = next.fetch_add(1)) body(context, index, worker);
    }

    void wait_for_work(int worker, unsigned seen) {
        for (;;) {
            for (int spin = 0; spin < spins && turn.load(std::memory_order_acquire) == seen; ++spin) pause();
            if (turn.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return turn.load() != seen; });
            }
            // No new turn begins before all threads of the pool have reported, so this one cannot be missed.
            seen = turn.load(std::memory_order_acquire);
            if (worker <= wanted) work(worker);
            running.fetch_sub(1, std::memory_order_release);
        }
    }

    void run(int count_, int threads, Body body_, void* context_) {
        while (size < threads - 1) {
            const unsigned seen = turn.load();
            ++size;
            std::thread(&Pool::wait_for_work, this, size, seen).detach();
        }
        body = body_, context = context_, count = count_, wanted = threads - 1;
        next.store(0);
        running.store(size);
        {
            const std::lock_guard<std::mutex> lock(mutex);
            turn.fetch_add(1, std::memory_order_release);
        }
        wake.notify_all();
        work(0);
        for (int spin = 0; running.load(std::memory_order_acquire) > 0; ++spin) {
            if (spin < 100 * spins) pause();
            else std::this_thread::yield();
        }
    }
};

// Never destroyed: its threads wait until the process ends. A forked child has none of them and starts afresh.
Pool* pool = nullptr;

void start_afresh() { pool = new Pool; }

Pool* the_pool() {
    static const bool ready = [] {
        start_afresh();
        pthread_atfork(nullptr, nullptr, start_afresh);
        return true;
    }();
    static_cast<void>(ready);
    return pool;
}

}  // namespace

void parallel_for(int count, int threads, Body body, void* context) {
    threads = threads < count ? threads : count;
    if (threads > 1) {
        Pool* shared = the_pool();
        const std::unique_lock<std::mutex> lock(shared->in_use, std::try_to_lock);
        if (lock.owns_lock()) {
            shared->run(count, threads, body, context);
            return;
        }
    }
    for (int index = 0; index < count; ++index) body(context, index, 0);
}

}  // namespace keyglue
