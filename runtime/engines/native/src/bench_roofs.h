// What a processor reaches at most: bytes that it reads, and products of whole numbers; and how the benchmarks measure.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/kernels.h"

namespace edgeloop::bench {

constexpr size_t MEMORY = size_t{96} << 20;  // more than most caches hold

inline double now() {  // seconds of this thread
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

// The least of a few times.
template <class Work>
double best(Work work) {
  constexpr int TIMES = 15;
  double found = 1e9;
  for (int i = 0; i < TIMES; i++) {
    const double start = now();
    work();
    found = std::min(found, now() - start);
  }
  return found;
}

extern volatile uint64_t sink;  // results go there, so that they are computed

uint8_t* memory();     // [MEMORY]
void fill(Kind kind);  // it, with numbers of an ordinary size: denormals would be measured otherwise
double read_roof();    // bytes a second, the best of several distances at which it is fetched ahead
// Multiplications and additions a second, two for each product, of the instruction that a table multiplies codes with; or 0.
double multiply_roof(const std::string& table);

}  // namespace edgeloop::bench
