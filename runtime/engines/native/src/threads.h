// A team of threads for passes: all of them run one function, share out its work in small pieces, and wait for each
// other between phases. The thread that asks for a pass is the team's worker 0.
//
// Each thread has a share of the pieces, one behind the other, so that it reads on where it was, and meets in later phases
// what it wrote itself. Who is done takes from the end of others' shares, so that a core that is slow, or that another
// program has for a while, does fewer. A wait spins briefly and then sleeps; between passes workers do the same, so that a team at rest costs nothing.
// How many threads a pass uses is learned from how long passes of its kind took (pace.h), unless it is fixed.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "pace.h"

namespace edgeloop {

struct TeamOptions {
  int threads = 1;            // 1 to 128; fewer are made where the system gives no more
  const int* cpus = nullptr;  // [threads]: the processor of each, of which the first is not used: worker 0 is the caller's
  bool adaptive = true;       // use fewer threads where that is faster
  int spin_microseconds = 50;  // before a wait sleeps
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
  // How many passes of a kind use as far as is known.
  int usual(int kind) const { return options_.adaptive ? paces_.usual(kind, threads()) : threads(); }

  // Run body(worker), which throws nothing, on the team; return when all are done. `kind`: passes of like
  // cost (pace.h). Passes that several threads of the program ask for run one after the other. In `body` denormals
  // are numbers and rounding is to the nearest, whatever the calling thread has set, which is put back afterwards.
  template <class Body>
  void run(int kind, Body&& body) {
    auto call = [](void* data, int worker) { (*static_cast<std::remove_reference_t<Body>*>(data))(worker); };
    run(kind, call, &body);
  }

  // Within a pass, by all workers alike: piece(i) once for each i from 0 to n - 1, by any of them; then wait for all.
  template <class Piece>
  void share(int n, int worker, Piece&& piece) {
    take(n, worker, piece);
    barrier(worker);
  }
  // The same without the wait, which must follow before pieces are taken again.
  template <class Piece>
  void take(int n, int worker, Piece&& piece) {
    if (count_ == 1) {
      for (int i = 0; i < n; i++) piece(i);
      return;
    }
    const uint32_t parity = phase_.load(std::memory_order_relaxed) & 1;
    for (int other = 0; other < count_; other++) {
      const int whose = (worker + other) % count_, first = first_of(n, whose), size = first_of(n, whose + 1) - first;
      std::atomic<uint64_t>& taken = shares_[size_t(whose)].taken[parity];
      for (;;) {
        const uint64_t before = taken.fetch_add(other ? FROM_THE_END : 1, std::memory_order_relaxed);
        const int front = int(before & (FROM_THE_END - 1)), back = int(before / FROM_THE_END);
        if (front + back >= size) break;
        piece(other ? first + size - 1 - back : first + front);
      }
    }
  }
  // The first piece of a worker's share of n.
  int first_of(int n, int worker) const { return int(int64_t(n) * worker / count_); }
  // Within a pass, by all workers alike: wait for all.
  void barrier(int worker);

 private:
  using Call = void (*)(void* data, int worker);
  void start();   // threads of this process
  void forget();  // those of the process that this one was forked from
  void run(int kind, Call call, void* data);
  void run_together(int count, Call call, void* data);
  void work(int worker);
  void wait_while(const std::atomic<uint32_t>& word, uint32_t value);
  void change(std::atomic<uint32_t>& word, uint32_t value);  // and wake who waits for it

  TeamOptions options_;
  std::vector<std::thread> workers_;
  Paces paces_;
  std::mutex passes_;
  std::vector<int> cpus_;  // of the threads, where they are pinned
  int owner_ = 0;  // the process: a fork of it has none of the threads, and makes its own
  int count_ = 1;
  Call call_ = nullptr;
  void* data_ = nullptr;
  struct Bed {
    std::mutex mutex;
    std::condition_variable woken;
  };
  std::unique_ptr<Bed> bed_ = std::make_unique<Bed>();  // where waits sleep
  std::atomic<int> sleeping_{0};
  // How many pieces of a worker's share are taken, from its beginning and, FROM_THE_END each, from its end: in phases of
  // even and of odd numbers. Those of the next phase are put back by their worker before it waits.
  static constexpr uint64_t FROM_THE_END = uint64_t{1} << 32;
  struct alignas(64) Share {
    std::atomic<uint64_t> taken[2] = {};
  };
  std::vector<Share> shares_;
  alignas(64) std::atomic<int> arrived_{0};      // workers that wait in the phase
  alignas(64) std::atomic<uint32_t> phase_{0};   // counts phases
  alignas(64) std::atomic<uint32_t> pass_{0};    // counts passes, above the workers that it has in 8 bits; 0 workers: the end
};

}  // namespace edgeloop
