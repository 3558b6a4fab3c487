// What the deltas of depths add to a block pass: bench_deltas WITHOUT WITH ..., model.lanes files of one shape. Passes with
// and without take turns. One thread in its own time; with all threads in the clock's, which other programs disturb.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "edgeloop.h"

namespace {

constexpr int ROUNDS = 41;
constexpr uint32_t CACHED = 64, CAPACITY = 128;

struct Case {
  const char* name;
  uint32_t lanes, tokens;  // of each; lanes are of depths 0, 1, 2 …
};
constexpr Case CASES[] = {{"1 row", 1, 1}, {"3 rows of a depth", 1, 3}, {"3 rows of 3 depths", 3, 1},
    {"8 rows of a depth", 1, 8}, {"9 rows of 3 depths", 3, 3}, {"64 rows of a depth", 1, 64}};

char error[EL_ERROR_SIZE];

void check(int code) {
  if (code == EL_OK) return;
  std::fprintf(stderr, "%s\n", error);
  std::exit(1);
}

double now(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

// A model and a session of it.
class Opened {
 public:
  Opened(const char* path, uint32_t threads) : clock_(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC) {
    el_open_options how = {};
    how.struct_bytes = sizeof how;
    how.threads = threads;
    check(el_open(path, &how, &model_, error));
    info_.struct_bytes = sizeof info_;
    check(el_model_info(model_, &info_, error));
    el_session_options options = {};
    options.struct_bytes = sizeof options;
    options.sequences = 1;
    options.capacity = CAPACITY;
    check(el_session_new(model_, &options, &session_, error));
    state_.assign(size_t(CAPACITY) * info_.width, 0);
    for (size_t i = 0; i < state_.size(); i++) state_[i] = float(int(i * 7919 % 2001) - 1000) * 1e-3f;
    out_ = state_;
    for (uint32_t depth = 0; depth < info_.depths; depth++) block(depth, 1, CACHED, 0);
  }
  ~Opened() {
    el_session_free(session_);
    el_close(model_);
  }
  uint32_t depths() const { return info_.depths; }

  // Seconds of a pass with `lanes` lanes from depth `depth` on, of `tokens` tokens each.
  double block(uint32_t depth, uint32_t lanes, uint32_t tokens, uint32_t cached) {
    std::vector<int64_t> depths, positions;
    for (uint32_t b = 0; b < lanes; b++) {
      depths.push_back(depth + b);
      for (uint32_t i = 0; i < tokens; i++) positions.push_back(cached + i);
    }
    const std::vector<int32_t> before(lanes, int32_t(cached)), count(lanes, int32_t(tokens));
    el_lanes l = {};
    l.struct_bytes = sizeof l;
    l.count = lanes;
    l.stride = tokens;
    l.first_slot = depth;
    l.depth = depths.data();
    l.cached = before.data();
    l.tokens = count.data();
    l.positions = positions.data();
    const double start = now(clock_);
    check(el_block(session_, &l, state_.data(), out_.data(), error));
    return now(clock_) - start;
  }

 private:
  clockid_t clock_;
  el_model* model_ = nullptr;
  el_session* session_ = nullptr;
  el_info info_ = {};
  std::vector<float> state_, out_;
};

void compare(const char* without, const char* with_deltas, uint32_t threads) {
  const char* slash = std::strrchr(with_deltas, '/');
  std::printf("%s, %s\n", slash ? slash + 1 : with_deltas, threads == 1 ? "one thread" : "all threads");
  Opened plain(without, threads), with(with_deltas, threads);
  for (const Case& c : CASES) {
    if (c.lanes > plain.depths() || c.lanes > with.depths()) continue;
    std::vector<double> times[2], ratios;
    for (int round = 0; round < ROUNDS; round++) {
      times[0].push_back(plain.block(0, c.lanes, c.tokens, CACHED));
      times[1].push_back(with.block(0, c.lanes, c.tokens, CACHED));
      ratios.push_back(times[1].back() / times[0].back());
    }
    for (auto* list : {&times[0], &times[1], &ratios}) std::sort(list->begin(), list->end());
    std::printf("  %-20s without %8.3f ms, with %8.3f ms (median %8.3f, %8.3f): x%.2f, of the medians x%.2f\n",
        c.name, times[0][0] * 1e3, times[1][0] * 1e3,
        times[0][ROUNDS / 2] * 1e3, times[1][ROUNDS / 2] * 1e3, times[1][0] / times[0][0], ratios[ROUNDS / 2]);
  }
}

}  // namespace

int main(int count, char** paths) {
  if (count < 3) return std::fprintf(stderr, "usage: bench_deltas WITHOUT WITH ...\n"), 2;
  std::printf("%s\n", el_kernels());
  for (int i = 2; i < count; i++)
    for (uint32_t threads : {1u, 0u}) compare(paths[1], paths[i], threads);
  return 0;
}
