// What the C++ tests without kernels and the fuzzer share: what does not hold, counted, and numbers by lot that are the same on every run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace edgeloop::test {

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  failures++;
  std::printf("FAILED %s\n", what.c_str());
}

// What main returns, after a line on the tests `name`.
inline int ended(const char* name) {
  std::printf("%s: %s\n", name, failures ? "FAILED" : "all hold");
  return failures != 0;
}

class Lot {
 public:
  explicit Lot(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t bits() {  // 31 of them
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state_ >> 33);
  }
  double next() { return double(bits()) / double(1u << 31); }  // from 0 to 1
  uint32_t below(uint32_t n) { return uint32_t(next() * n); }

 private:
  uint64_t state_;
};

}  // namespace edgeloop::test
