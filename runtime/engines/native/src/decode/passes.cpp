#include "passes.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace edgeloop::decode {

Read read_of(const Token& token, bool wanted) {
  if (token.wants() == Wants::epilogue)
    return {&token.sequence(), token.row(), token.positions().data(), token.input(), uint32_t(token.positions().size()),
        wanted};
  return {&token.sequence(), token.position(), token.own_position(), token.state(), 1, wanted};
}

Passes::Passes(el_session& session, uint32_t depths)
    : session(session), width_(session.model.model->width()), output_(session.model.head.program.output_width()) {
  counts.block_nanoseconds.resize(depths);
  counts.calls.resize(depths);
}

void Passes::add_rows(uint32_t slot, uint32_t row, const int64_t* positions, uint32_t count, size_t place) {
  const bool follows = !lanes_.empty() && lanes_.back().slot == slot && lanes_.back().cached + lanes_.back().tokens == row;
  if (follows)
    lanes_.back().tokens += count;
  else
    lanes_.push_back({0, row, count, slot, slot, nullptr, place});
  positions_.insert(positions_.end(), positions, positions + count);
}

const std::vector<Asked>& Passes::with_positions() {
  const int64_t* next = positions_.data();
  for (Asked& lane : lanes_) {
    lane.positions = next;
    next += lane.tokens;
  }
  return lanes_;
}

void Passes::prologues(const std::vector<Token*>& tokens) {
  lanes_.clear(), asked_.clear(), ids_.clear(), positions_.clear();
  for (Token* token : tokens) {
    if (token->wants() != Wants::prologue) continue;
    const std::vector<int64_t>& ids = token->ids();
    add_rows(token->sequence().number, token->row(), token->positions().data(), uint32_t(ids.size()), ids_.size());
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    asked_.push_back(token);
  }
  if (asked_.empty()) return;
  Io io;
  io.ids = ids_.data();
  io.out = states_.reserve(ids_.size() * width_);
  io.out_width = width_;
  run_lanes(session, session.model.prologue, with_positions(), io);
  const float* rows = io.out;
  for (Token* token : asked_) {
    const size_t count = token->ids().size();  // before it goes on
    token->take(session.caches, rows);
    rows += count * width_;
  }
}

void Passes::looped(const std::vector<Token*>& tokens, Wants wants) {
  lanes_.clear(), asked_.clear();
  size_t rows = 0;
  const uint32_t slots = session.caches.slots_per_sequence();
  for (Token* token : tokens) {
    if (token->wants() != wants) continue;
    const uint32_t first = token->sequence().number * slots, count = uint32_t(token->positions().size());
    const uint32_t slot = first + token->depth() % slots;
    lanes_.push_back({token->depth(), token->row(), count, slot, first, token->positions().data(), rows});
    asked_.push_back(token);
    rows += count;
  }
  if (asked_.empty()) return;
  float* states = states_.reserve(rows * width_);
  for (size_t i = 0; i < asked_.size(); i++)
    std::memcpy(states + lanes_[i].row * width_, asked_[i]->input(), lanes_[i].tokens * width_ * sizeof(float));
  Io io;
  io.in = states;
  io.in_width = io.out_width = width_;
  const bool fill = wants == Wants::fill;
  io.out = fill ? nullptr : states;
  const auto begin = std::chrono::steady_clock::now();
  run_blocks(session, lanes_, io, fill);
  const auto spent = std::chrono::steady_clock::now() - begin;
  if (!fill) {
    const uint64_t each = uint64_t(std::chrono::nanoseconds(spent).count()) / asked_.size();
    counts.block_calls++;
    counts.rows += rows;
    for (const Asked& lane : lanes_) {
      counts.block_nanoseconds[lane.depth] += each;
      counts.calls[lane.depth]++;
    }
  }
  for (size_t i = 0; i < asked_.size(); i++) asked_[i]->take(session.caches, states + lanes_[i].row * width_);
}

void Passes::epilogues(const std::vector<Token*>& tokens) {
  asked_.clear(), reads_.clear();
  for (Token* token : tokens) {
    if (token->wants() != Wants::epilogue) continue;
    asked_.push_back(token);
    reads_.push_back(read_of(*token, token->wants_logits()));
  }
  read(reads_);
  for (Token* token : asked_) token->take(session.caches, nullptr);
}

void Passes::read(const std::vector<Read>& reads) {
  if (reads.empty()) return;
  lanes_.clear(), positions_.clear(), picked_.clear();
  size_t rows = 0;
  for (const Read& read : reads) rows += read.count;
  float* states = states_.reserve(rows * width_);
  rows = 0;
  for (const Read& read : reads) {
    std::memcpy(states + rows * width_, read.states, read.count * width_ * sizeof(float));
    add_rows(read.sequence->number, read.row, read.positions, read.count, rows);
    rows += read.count;
    if (read.wanted) picked_.push_back(rows - 1);
  }
  const Program& program = session.model.epilogue.program;
  Io io;
  io.in = states;
  io.in_width = width_;
  io.out_width = program.output_width();
  io.out = hidden_.reserve(rows * io.out_width);
  run_lanes(session, session.model.epilogue, with_positions(), io);
  if (!picked_.empty()) run_head(session, io.out, picked_, logits_.reserve(picked_.size() * output_));
}

void Passes::advance(const std::vector<Token*>& tokens) {
  prologues(tokens);
  fills(tokens);
  blocks(tokens);
  epilogues(tokens);
}

}  // namespace edgeloop::decode
