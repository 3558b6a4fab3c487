// What many tokens want, run in as few calls of the engine as there are stages: of one sequence or of many.
#pragma once

#include <cstdint>
#include <vector>

#include "../calls.h"
#include "token.h"

namespace edgeloop::decode {

// Rows that go through the epilogue's layers, and whether the last one is read out.
struct Read {
  const Sequence* sequence;
  uint32_t row;  // the first's, in the slot
  const int64_t* positions;
  const float* states;  // [count][width]
  uint32_t count;
  bool wanted;
};
// Of a token that wants the epilogue, or of what a draft may be made of: its newest state.
Read read_of(const Token& token, bool wanted);

// What was done, for those who ask what it cost.
struct Counts {
  uint64_t tokens = 0, block_calls = 0, rows = 0, nanoseconds = 0;  // tokens, nanoseconds: counted by drivers
  std::vector<uint64_t> block_nanoseconds, calls;                  // [depth]
};

class Passes {
 public:
  // `depths`: how often the loop runs.
  Passes(el_session& session, uint32_t depths);

  // Each runs what those of `tokens` want that want this stage, in one call, and gives it to them. The others are left.
  void prologues(const std::vector<Token*>& tokens);
  void fills(const std::vector<Token*>& tokens) { looped(tokens, Wants::fill); }
  void blocks(const std::vector<Token*>& tokens) { looped(tokens, Wants::block); }
  void epilogues(const std::vector<Token*>& tokens);
  // All four: every token that is not done comes at least one step on.
  void advance(const std::vector<Token*>& tokens);

  // The epilogue's layers on all rows, in order; then logits of the last row of each that is wanted: logits(0) … Rows of
  // one sequence at neighbouring positions go as one lane, so that each sees those before it.
  void read(const std::vector<Read>& reads);
  // Of the last `read` or `epilogues`, until the next: in `epilogues` of the tokens that wanted logits, in their order.
  const float* logits(size_t number) const { return logits_.data() + number * output_; }
  uint32_t output() const { return uint32_t(output_); }

  el_session& session;
  Counts counts;

 private:
  void looped(const std::vector<Token*>& tokens, Wants wants);
  // Rows behind those of the lane before, where they are the next ones of the same sequence.
  void add_rows(uint32_t slot, uint32_t row, const int64_t* positions, uint32_t count, size_t place);
  const std::vector<Asked>& with_positions();

  size_t width_, output_;
  Buffer states_, hidden_, logits_;
  std::vector<Asked> lanes_;
  std::vector<Token*> asked_;
  std::vector<Read> reads_;
  std::vector<int64_t> ids_;
  std::vector<size_t> picked_;
  std::vector<int64_t> positions_;  // of all lanes that `add_rows` made
};

}  // namespace edgeloop::decode
