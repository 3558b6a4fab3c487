// A team of threads for passes: all of them run one function, share out its work in small pieces, and wait for each
// other between phases. The thread that asks for a pass is the team's worker 0.
//
// Pieces are taken from a counter, so that a core that is slow, or that another program has for a while, takes fewer of
// them. A wait spins briefly and then sleeps; between passes workers do the same, so that a team at rest costs nothing.
// How many threads a pass uses is learned from how long passes of its kind took (`Pace`), unless it is fixed.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace edgeloop {

struct TeamOptions {
    int threads = 1;
    const int* cpus = nullptr;  // [threads]: the processor of each thread but the asking one; null: wherever the system puts them
    bool adaptive = true;       // use fewer threads where that is faster
    int spin_microseconds = 50; // before a wait sleeps
};

// How many threads to use for passes of one kind: the count that is fastest now. Each neighbour of it is tried now and
// then, the more rarely the longer nothing changes.
class Pace {
public:
    int choose(int most);
    void learn(int count, int most, double seconds);

private:
    static constexpr int kFirstInterval = 16, kLastInterval = 256;
    std::vector<double> mean_;  // by count; 0: not tried
    int best_ = 0, trial_ = 0, left_ = kFirstInterval, interval_ = kFirstInterval;
};

class Team {
public:
    explicit Team(const TeamOptions& options);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int threads() const { return int(workers_.size()) + 1; }
    // How many of them the pass in progress uses; workers are numbered from 0 to this - 1.
    int count() const { return count_; }

    // Run body(worker) on all of the team; return when all are done. `kind`, from 0 to 255: passes of like cost (rows).
    // Passes of several threads of the program run one after the other. Denormals are numbers in `body`, rounding is to the
    // nearest: the calling thread's settings of these are put back afterwards.
    template <class Body>
    void run(int kind, Body&& body) {
        auto call = [](void* data, int worker) { (*static_cast<std::remove_reference_t<Body>*>(data))(worker); };
        run(kind, call, &body);
    }

    // Within a pass, by all workers alike: piece(i) once for each i from 0 to n - 1, by any of them; then wait for all.
    template <class Piece>
    void share(int worker, int n, Piece&& piece) {
        if (count_ == 1) {
            for (int i = 0; i < n; i++) piece(i);
            return;
        }
        for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n;) piece(i);
        barrier(worker);
    }
    // Within a pass, by all workers alike: wait for all.
    void barrier(int worker);

private:
    using Call = void (*)(void* data, int worker);
    void run(int kind, Call call, void* data);
    void work(int worker);

    TeamOptions options_;
    std::vector<std::thread> workers_;
    std::vector<Pace> paces_;
    std::mutex passes_;
    int owner_;  // the process: a fork has none of the threads
    int count_ = 1;
    Call call_ = nullptr;
    void* data_ = nullptr;
    std::mutex sleep_;
    std::condition_variable wake_;
    bool stop_ = false;
    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<uint32_t> pass_{0};
    std::atomic<int> sleeping_{0};
};

}  // namespace edgeloop
