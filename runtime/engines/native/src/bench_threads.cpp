// What a team of threads makes of passes like those of a decode step: layers of four products with a wait behind each. In
// the clock's time, one thread, all, and as many as the team learns in turns, so that what else the computer does meets all
// alike; alone, and beside a thread of ours that takes a processor: then what the team learns is to be 0.9 of one thread's speed.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/kernels.h"
#include "threads.h"

using namespace edgeloop;

namespace {

constexpr int LAYERS = 10, ROUNDS = 40, PASSES = 20;
constexpr struct {
  int rows, columns;
} LAYER[] = {{1600, 960}, {960, 960}, {5120, 960}, {960, 2560}};
const char* const NAMES[] = {"one thread", "all threads", "as the team learns"};

// int4 in groups of 128, as a model of 360M parameters has them.
struct Weights {
  Weights() {
    constexpr size_t ROOM = size_t{64} << 20;
    uint8_t* p = static_cast<uint8_t*>(std::aligned_alloc(64, ROOM));
    std::memset(p, 0x5a, ROOM);
    for (int layer = 0; layer < LAYERS; layer++)
      for (const auto& part : LAYER) {
        matrices.push_back({p, scales.data(), part.rows, part.columns, 128, Kind::int4});
        p += tile_bytes(matrices.back()) * size_t(tiles_of(matrices.back()));
      }
  }
  std::vector<uint16_t> scales = std::vector<uint16_t>(5120 * 20, 0x1c00);
  std::vector<Matrix> matrices;
};

std::atomic<uint64_t> spun{0};

}  // namespace

int main() {
  const Kernels& kernels = *choose_kernels();
  const Weights weights;
  const int processors = std::max(2, int(std::thread::hardware_concurrency()));
  std::vector<float> y(5120), x_scales(20, 0.01f);
  std::vector<int8_t> codes(2560, 3);
  std::vector<int32_t> sums(20);
  const Codes x{codes.data(), x_scales.data(), sums.data()};
  std::unique_ptr<Team> teams[3];
  for (int i = 0; i < 3; i++) {
    TeamOptions options;
    options.threads = i ? processors : 1, options.adaptive = i == 2;
    teams[i] = std::make_unique<Team>(options);
  }
  const auto pass = [&](Team& team) {
    team.run(1, [&](int worker) {
      for (const Matrix& w : weights.matrices)
        team.share(tiles_of(w) / 10, worker, [&](int i) { kernels.product_codes(w, x, 1, i * 10, i * 10 + 10, {y.data(), w.rows, nullptr, false}); });
    });
  };
  for (bool taken : {false, true}) {
    std::atomic<bool> stop{false};
    std::thread other;
    if (taken) {
      other = std::thread([&] {
        while (!stop) spun++;
      });
    }
    std::vector<double> times[3];
    for (int round = 0; round < ROUNDS; round++)
      for (int i = 0; i < 3; i++) {
        const auto start = std::chrono::steady_clock::now();
        for (int n = 0; n < PASSES; n++) pass(*teams[i]);
        times[i].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / PASSES * 1e3);
      }
    stop = true;
    if (taken) other.join();
    printf("%s, %d processors, %s\n", kernels.name, processors, taken ? "one taken by another thread" : "none taken by us");
    double one = 0;
    for (int i = 0; i < 3; i++) {
      double total = 0;
      for (double t : times[i]) total += t;
      std::sort(times[i].begin(), times[i].end());
      if (i == 0) one = total;
      printf("  %-20s %6.2f ms a pass (median %.2f, best %.2f): %.2f of one thread's speed\n", NAMES[i], total / ROUNDS,
          times[i][ROUNDS / 2], times[i][0], one / total);
    }
  }
  return 0;
}
