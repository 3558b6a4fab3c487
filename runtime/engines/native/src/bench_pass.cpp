// Where a pass of a file's block spends its time: bench_pass model.lanes [behind=N] [kv=32|16|8] [rows ...]. For each number
// of rows, with one thread and with all: each kind of step, how long each thread works in it and waits behind it, and what
// the ops cost. Up to 8 rows are tokens of as many sequences, at depth after depth, 128 tokens behind each; more are a piece
// of a prompt, at its beginning; `behind` tokens are behind all of them where it is given.
// Of many passes the fastest tenth count, so that other programs disturb less.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "engine.h"

using namespace edgeloop;

namespace {

constexpr uint32_t BEHIND = 128, MOST_LANES = 8;

// What is asked for beside rows.
struct Asked {
  uint32_t behind = 0, kv = EL_KV_F32;
};
constexpr int PASSES = 300, WARM = 5;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double ticks_a_second() {
  const uint64_t first = ticks();
  const double start = seconds();
  while (seconds() < start + 0.05) {
  }
  return double(ticks() - first) / (seconds() - start);
}

void check(int code, const char* error) {
  if (code == EL_OK) return;
  fprintf(stderr, "%s\n", error);
  exit(1);
}

std::string described(const Program& program, const std::vector<uint32_t>& nodes) {
  std::map<std::string, int> counts;
  std::string found;
  for (uint32_t i : nodes) {
    const Node& node = program.nodes[i];
    std::string name = el_node_name(node.kind);
    if (node.kind == file::LINEAR) name += "." + std::to_string(program.sizes[node.y]);
    if (counts[name]++ == 0) found += (found.empty() ? "" : " ") + name;
  }
  return found;
}

// The kind of a step, and the bytes of matrices that it reads.
std::pair<std::string, double> of_step(const Program& program, const Step& step) {
  constexpr const char* KINDS[] = {"rows", "columns", "attend", "experts"};
  std::vector<uint32_t> nodes = step.nodes;
  for (const Domain& domain : step.domains) nodes.insert(nodes.end(), domain.nodes.begin(), domain.nodes.end());
  double bytes = 0;
  for (uint32_t i : nodes) {
    const Node& node = program.nodes[i];
    if (node.kind != file::LINEAR) continue;
    const Matrix w = program.model->part(node.op->weights[0], node.part, 0);
    bytes += double(tiles_of(w)) * double(tile_bytes(w) + (w.scales ? size_t(groups_of(w)) * LANES * 2 : 0));
  }
  return {std::string(KINDS[step.kind]) + ": " + described(program, nodes), bytes};
}

// One kind of pass: a call that can be made again and again.
struct Passes {
  el_model* model;
  el_session* session = nullptr;
  uint32_t rows;
  std::vector<float> in, out;
  std::vector<int64_t> depth, positions;
  std::vector<int32_t> cached, tokens, slots;
  el_lanes lanes{};

  Passes(el_model* model, uint32_t rows, Asked asked) : model(model), rows(rows) {
    const bool prompt = rows > MOST_LANES;
    const uint32_t count = prompt ? 1 : rows, new_ones = prompt ? rows : 1, behind = asked.behind ? asked.behind : prompt ? 0 : BEHIND;
    const uint32_t width = model->model->width();
    char error[EL_ERROR_SIZE];
    el_session_options options{sizeof options, count, behind + new_ones, 0, asked.kv};
    check(el_session_new(model, &options, &session, error), error);
    const uint32_t a_sequence = session->caches.slots_per_sequence();
    for (uint32_t b = 0; b < count; b++) {
      depth.push_back(b % model->depths());
      slots.push_back(int32_t(b * a_sequence + std::min(uint32_t(depth.back()), a_sequence - 1)));
    }
    in.resize(size_t(std::max(rows, count * behind)) * width);
    out.resize(in.size());
    uint32_t random = 1;
    for (float& x : in) {
      random = random * 1664525 + 1013904223;
      x = float(random >> 8) / float(1 << 23) - 1.0f;
    }
    if (behind) {
      set(0, behind);
      call();
    }
    set(behind, new_ones);
  }
  ~Passes() { el_session_free(session); }

  void set(uint32_t before, uint32_t new_ones) {
    cached.assign(depth.size(), int32_t(before));
    tokens.assign(depth.size(), int32_t(new_ones));
    positions.clear();
    for (size_t b = 0; b < depth.size(); b++)
      for (uint32_t i = 0; i < new_ones; i++) positions.push_back(before + i);
    lanes = {sizeof lanes, uint32_t(depth.size()), new_ones, 0, 0, 0, depth.data(), cached.data(), tokens.data(),
        positions.data(), slots.data()};
  }
  void call() {
    char error[EL_ERROR_SIZE];
    check(el_block(session, &lanes, in.data(), out.data(), error), error);
  }
};

void measure(el_model* model, uint32_t rows, int threads, bool nodes, double rate, Asked asked) {
  TeamOptions options;
  options.threads = threads, options.adaptive = false;
  model->team = std::make_unique<Team>(options);
  Passes passes(model, rows, asked);
  const Compiled& what = model->at_depth(0, false);
  const size_t steps = what.plan.steps.size();
  const int count = rows > MOST_LANES ? PASSES / 5 : PASSES;
  std::vector<std::pair<double, Spent>> all;
  for (int i = 0; i < count + WARM; i++) {
    Spent spent;
    spent.steps.assign(size_t(threads), std::vector<Spent::Of>(steps));
    if (nodes) spent.nodes.assign(size_t(threads), std::vector<uint64_t>(what.program.nodes.size()));
    model->space.spent = &spent;
    const double start = seconds();
    passes.call();
    const double took = seconds() - start;
    model->space.spent = nullptr;
    if (i >= WARM) all.emplace_back(took, std::move(spent));
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  const double median = all[all.size() / 2].first;
  all.resize(std::max<size_t>(all.size() / 10, 3));
  const double each = 1e6 / rate / double(all.size());  // microseconds a pass, of a tick in all of them

  if (nodes) {
    std::map<std::string, double> kinds;
    for (const auto& one : all)
      for (const auto& thread : one.second.nodes)
        for (size_t i = 0; i < thread.size(); i++) kinds[described(what.program, {uint32_t(i)})] += double(thread[i]);
    for (const auto& [name, sum] : kinds)
      if (sum > 0) printf("    %-14s %9.1f us of all threads\n", name.c_str(), sum * each);
    return;
  }
  struct Row {
    double bytes = 0, work[2] = {}, wait[2] = {};
    int steps = 0;
  };
  std::map<std::string, Row> found;
  double outside = 0;
  for (size_t s = 0; s < steps; s++) {
    const auto [name, bytes] = of_step(what.program, what.plan.steps[s]);
    Row& row = found[name];
    row.bytes += bytes, row.steps++;
    for (const auto& one : all)
      for (int t = 0; t < threads; t++) {
        row.work[t > 0] += double(one.second.steps[size_t(t)][s].work) * each / std::max(1, t ? threads - 1 : 1);
        row.wait[t > 0] += double(one.second.steps[size_t(t)][s].wait) * each / std::max(1, t ? threads - 1 : 1);
      }
  }
  for (const auto& one : all) outside += one.first * 1e6 / double(all.size());
  printf("%u rows, %d threads: %.1f us a pass (best %.1f, median %.1f)\n", rows, threads, outside, all[0].first * 1e6,
      median * 1e6);
  for (const auto& [name, row] : found) {
    outside -= row.work[0] + row.wait[0];
    printf("    %8.1f +%6.1f us", row.work[0], row.wait[0]);
    if (threads > 1) printf(", others %8.1f +%6.1f us", row.work[1], row.wait[1]);
    if (row.bytes > 0) printf(" %6.1f GB/s", row.bytes * 1e-3 / (row.work[0] + row.wait[0]));
    else printf("            ");
    printf("  %2d x %s\n", row.steps, name.c_str());
  }
  printf("    %8.1f         us outside of steps\n", outside);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    fprintf(stderr, "usage: bench_pass model.lanes [behind=N] [kv=32|16|8] [rows ...]\n");
    return 2;
  }
  std::vector<uint32_t> rows;
  Asked asked;
  for (int i = 2; i < count; i++) {
    const std::string given = arguments[i];
    if (given.rfind("behind=", 0) == 0) asked.behind = uint32_t(atoi(arguments[i] + 7));
    else if (given.rfind("kv=", 0) == 0) asked.kv = given == "kv=4" ? EL_KV_I4 : given == "kv=8" ? EL_KV_I8 : given == "kv=16" ? EL_KV_F16 : EL_KV_F32;
    else rows.push_back(uint32_t(atoi(arguments[i])));
  }
  if (rows.empty()) rows = {1, 2, 3, 4, 8, 128};
  char error[EL_ERROR_SIZE];
  el_model* model = nullptr;
  check(el_open(arguments[1], nullptr, &model, error), error);
  const double rate = ticks_a_second();
  const int most = model->team->threads();
  for (uint32_t n : rows)
    for (int threads = 1; threads <= most; threads = threads < most ? most : most + 1) {
      measure(model, n, threads, false, rate, asked);
      measure(model, n, threads, true, rate, asked);
    }
  el_close(model);
  return 0;
}
