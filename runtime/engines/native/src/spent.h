// What passes cost, step by step: a counter for benchmarks. Passes that nobody counts look once at a pointer.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edgeloop {

// A clock whose unit is the processor's own; it counts on evenly, and reading it takes nanoseconds.
inline uint64_t ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return uint64_t(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

// Ticks of the passes of one program, by thread. Resize `steps`, and `nodes` if they are to be told apart, which makes
// small passes longer.
struct Spent {
  struct Of {
    uint64_t work = 0, wait = 0;
  };
  std::vector<std::vector<Of>> steps;        // [threads][steps of the plan]
  std::vector<std::vector<uint64_t>> nodes;  // [threads][nodes of the program]

  void add(int worker, size_t step, uint64_t work, uint64_t wait) {
    Of& of = steps[size_t(worker)][step];
    of.work += work, of.wait += wait;
  }
};

// What the nodes of every pass of a model cost, since it was made.
struct Profile {
  struct Of {
    uint32_t call, role, kind, outputs;
    uint64_t ticks;  // of the thread that it took longest
  };
  std::vector<Of> nodes;
  uint32_t calls = 0;  // of a stage; a pass belongs to the last one

  double nanoseconds_a_tick() const {
    const auto since = std::chrono::steady_clock::now() - start_;
    const uint64_t counted = ticks() - first_;
    return counted ? double(std::chrono::nanoseconds(since).count()) / double(counted) : 0;
  }

 private:
  uint64_t first_ = ticks();
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace edgeloop
