// What passes cost, step by step: a counter for benchmarks. Passes that nobody counts look once at a pointer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <chrono>
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

}  // namespace edgeloop
