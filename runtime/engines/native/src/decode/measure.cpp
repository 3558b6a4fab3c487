#include "measure.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "../calls.h"

namespace edgeloop::decode {

namespace {

constexpr uint32_t ROWS[] = {8, 1, 4, 2};  // the first makes room, and reads the file; those between lie between
constexpr uint32_t MOST_ROWS = 8;
constexpr int LEAST_TURNS = 2, TURNS = 16;
constexpr double ENOUGH = 6e6;  // nanoseconds

double now() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Scratch {
 public:
  Scratch(el_model& model, uint32_t depths, uint32_t slots, el_kv kv)
      : depths_(depths), session_(model, {uint32_t(sizeof(el_session_options)), 1, room(model), slots, uint32_t(kv)}),
        width_(model.model->width()), output_(model.head.program.output_width()),
        hidden_(model.epilogue.program.output_width()) {
    for (uint32_t i = 0; i < MOST_ROWS; i++) positions_[i] = i;
    state_.reserve(MOST_ROWS * width_);
    std::fill_n(state_.data(), MOST_ROWS * width_, 1.f);
    between_.reserve(MOST_ROWS * std::max(width_, hidden_));
    logits_.reserve(MOST_ROWS * output_);
  }

  uint32_t rows() const { return session_.caches.capacity(); }

  // Nanoseconds of prologue, block and epilogue.
  std::array<double, 3> run(uint32_t rows) {
    const double begin = now();
    prologue(rows);
    const double looped = now();
    block(rows);
    const double ends = now();
    read(rows);
    return {looped - begin, ends - looped, now() - ends};
  }

 private:
  void prologue(uint32_t rows) {
    const int64_t ids[MOST_ROWS] = {};
    Io io;
    io.ids = ids;
    io.out = between_.data();
    io.out_width = width_;
    run_lanes(session_, session_.model.prologue, {{0, 0, rows, 0, 0, positions_, 0}}, io);
  }

  // As with drafts: rows of neighbouring depths.
  void block(uint32_t rows) {
    const uint32_t slots = session_.caches.slots_per_sequence();
    std::vector<Asked> lanes;
    uint32_t row = 0;
    for (uint32_t depth = 0; depth < std::min(depths_, rows); depth++) {
      const uint32_t count = rows / depths_ + (depth < rows % depths_);
      lanes.push_back({depth, 0, count, depth % slots, 0, positions_, row});
      row += count;
    }
    Io io;
    io.in = state_.data();
    io.out = between_.data();
    io.in_width = io.out_width = width_;
    run_blocks(session_, std::move(lanes), io, false);
  }

  void read(uint32_t rows) {
    Io io;
    io.in = state_.data();
    io.in_width = width_;
    io.out = between_.data();
    io.out_width = hidden_;
    run_lanes(session_, session_.model.epilogue, {{0, 0, rows, 0, 0, positions_, 0}}, io);
    std::vector<size_t> picked;
    for (uint32_t i = 0; i < rows; i++) picked.push_back(i);
    run_head(session_, between_.data(), picked, logits_.data());
  }

  static uint32_t room(const el_model& model) {
    return std::min(MOST_ROWS, uint32_t(model.model->header().context_length));
  }

  uint32_t depths_;
  el_session session_;
  size_t width_, output_, hidden_;
  int64_t positions_[MOST_ROWS];
  Buffer state_, between_, logits_;
};

}  // namespace

Costs measure(const el_session& session, uint32_t depths) {
  Scratch scratch(session.model, depths, session.caches.slots_per_sequence(), session.caches.kv());
  Costs costs;
  double best[MOST_ROWS + 1][3] = {};
  const double begin = now();
  // In turns, so that what others take of the machine for a moment is not one number of rows'.
  for (int turn = 0; turn < TURNS && (turn < LEAST_TURNS || now() - begin < ENOUGH); turn++) {
    for (const uint32_t rows : ROWS) {
      if (rows > scratch.rows()) continue;
      const std::array<double, 3> spent = scratch.run(rows);
      for (int stage = 0; stage < 3; stage++)
        best[rows][stage] = turn ? std::min(best[rows][stage], spent[stage]) : spent[stage];
    }
  }
  for (const uint32_t rows : ROWS) {
    if (rows > scratch.rows()) continue;
    costs.prologue.set(rows, best[rows][0]);
    costs.block.set(rows, best[rows][1]);
    costs.read.set(rows, best[rows][2]);
  }
  return costs;
}

}  // namespace edgeloop::decode
