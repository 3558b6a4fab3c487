// One token on its way: what it wants of the engine next, and what it makes of the answer. The twin of
// TokenSequence.step (runtime/decode/sequence.py), as a state machine that any driver can advance.
#pragma once

#include <cstdint>
#include <vector>

#include "../cache.h"
#include "sequence.h"

namespace edgeloop::decode {

// What a token wants: some rows to go through a stage. Copies of rows between slots are made at once, never asked for.
enum class Wants { prologue, block, fill, epilogue, nothing };

class Token {
 public:
  // Begins the token `id` at `position` of `sequence`, behind those that were begun there. Where `sequence.overdue()`,
  // what waits runs first: then no other token may be in flight.
  void start(Sequence& sequence, int64_t id, uint32_t position);
  // Begins a text, ids [count] behind `sequence.cached` tokens, all of which run every depth, in rows of the same calls;
  // `read`: with logits of the last one. Nothing may wait, no router send tokens, and every depth have a slot of its own
  // unless the model shares it.
  void start_text(Sequence& sequence, const int64_t* ids, uint32_t count, bool read);
  // Begins no token: what waits runs, and nothing behind it.
  void start_waiting(Sequence& sequence);

  Wants wants() const { return wants_; }
  bool done() const { return wants_ == Wants::nothing; }
  Sequence& sequence() const { return *sequence_; }
  int64_t id() const { return ids_.front(); }
  const std::vector<int64_t>& ids() const { return ids_; }  // of a text, all
  uint32_t position() const { return uint32_t(position_); }
  const int64_t* own_position() const { return &position_; }
  uint32_t ran() const { return ran_; }  // depths, so far

  // Of what it wants: the depth, the row of the slot that its first row becomes, and its rows: positions, and what goes in
  // ([rows][width]; nothing for a prologue). Older tokens may ride along: its own row is the last one.
  uint32_t depth() const { return depth_; }
  uint32_t row() const { return row_; }
  const std::vector<int64_t>& positions() const { return positions_; }
  const float* input() const { return input_.data(); }
  // Whether the epilogue is for its own logits, not for older tokens that catch up.
  bool wants_logits() const { return wants_ == Wants::epilogue && !catching_up_ && read_; }
  // Its newest state [width], after the prologue and after each depth: what a driver may read out for a draft.
  const float* state() const { return state_.data(); }

  // Takes what the engine made of its rows, [rows][width]; nothing is read after fills and the epilogue.
  void take(Caches& caches, const float* rows);
  // Gives up: what it had taken along goes on waiting. The sequence is to be truncated to its position then.
  void cancel();

 private:
  void catch_up(uint32_t depth);
  void enter(uint32_t depth);
  void run(uint32_t depth);
  void ran_depth(Caches& caches, const float* rows);
  void leave(Caches& caches);
  void read();
  void route(uint32_t depth);
  void ran_route(const float* rows);
  void ran_text(const float* rows);
  void want(Wants what, uint32_t depth, uint32_t row) { wants_ = what, depth_ = depth, row_ = row; }

  Sequence* sequence_ = nullptr;
  int64_t position_ = 0;
  uint32_t ran_ = 0, depth_ = 0, row_ = 0;
  Wants wants_ = Wants::nothing;
  bool catching_up_ = false, text_ = false, read_ = true, none_ = false;
  Sent sent_{};  // by a router
  std::vector<int64_t> ids_, positions_;
  std::vector<float> input_, state_, before_, entered_;
  std::vector<double> stay_;  // the gate's
};

}  // namespace edgeloop::decode
