// What a sequence holds between tokens: which rows of which slot are whose, and what waits for a depth. The twin of
// runtime/decode/kv_layout.py and skipped_kv.py.
#pragma once

#include <cstdint>
#include <vector>

#include "rules.h"

namespace edgeloop::decode {

// States that wait for one depth, of tokens by their position, the oldest first.
struct Waiting {
  std::vector<int64_t> positions;
  std::vector<float> states;  // [positions][width]

  bool empty() const { return positions.empty(); }
  void push(int64_t position, const float* state, size_t width);
  // Moves those up to `position` behind what `positions` and `states` hold.
  void take(int64_t position, size_t width, std::vector<int64_t>& positions, std::vector<float>& states);
  void truncate(int64_t position, size_t width);
};

constexpr size_t WAITING_LIMIT = 64;  // of a depth; then they run without a deep token to ride with

// How a model's tokens go through its depths: the same for all sequences of a mode.
struct Policy {
  Policy(const el_policy& policy, uint32_t first_carry, bool epilogue_kv);

  Rule rule;
  el_skipped skipped;
  bool shared;       // one slot serves all depths, and a token's row is its position
  bool gaps;         // slots lack the tokens that left before their depth: a row is not a position then
  bool epilogue_kv;  // the epilogue has K and V
};

class Sequence {
 public:
  // `number`: of the session's sequences. `width`: of a state.
  Sequence(const Policy& policy, uint32_t number, uint32_t width);

  const Policy& policy;
  const uint32_t number, width;
  uint32_t cached = 0;                      // tokens that were run
  std::vector<uint32_t> filled;             // by depth: tokens whose K and V are in its slot
  std::vector<std::vector<int64_t>> held;   // by depth: the positions of its slot's rows; empty without gaps
  std::vector<Waiting> waiting;             // by depth
  uint64_t decisions = 0, decide_nanoseconds = 0;  // of its tokens, to stop or to go on

  bool overdue() const;
  // The row of its slot that a token at `position` gets at `depth`.
  uint32_t row(uint32_t depth, int64_t position) const { return policy.gaps ? filled[depth] : uint32_t(position); }
  // `depth` has run tokens at `positions` [count], which are rows from `row` on.
  void wrote(uint32_t depth, uint32_t row, const int64_t* positions, size_t count);
  // `row` of `depth` was given to all deeper depths.
  void copied(uint32_t depth, uint32_t row, int64_t position);
  // All tokens before `position` have run as deep as they will.
  void finished(uint32_t position);
  // By depth, how many rows are of tokens before `position`.
  uint32_t rows_before(uint32_t depth, uint32_t position) const;
  // Forgets the tokens from `position` on; of tokens in flight, `Token::cancel` comes first.
  void truncate(uint32_t position);
};

}  // namespace edgeloop::decode
