// Tokens of one sequence with drafts: a token's deeper depths and the next tokens' shallower ones share one read of the
// weights. What is final is what sequential decoding gives, bit for bit: a row depends on nothing but the rows before it,
// and what follows a refuted draft is taken back.
//
// Tokens in flight stand at neighbouring positions, the oldest first. In a pass each runs one depth. Drafts come from the
// text itself (lookup.h) and from the prediction of a shallow depth; whether one is fed, and which tokens are read out, is
// asked of `Drafts`. All depths of a position choose with the same noise.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "drafts.h"
#include "lookup.h"
#include "passes.h"
#include "sampler.h"

namespace edgeloop::decode {

// What became of drafts.
struct DraftCounts {
  uint64_t tokens = 0, passes = 0;            // tokens that became final; passes that they took
  uint64_t fed[2] = {}, right[2] = {};        // drafts that became final or were refuted: looked up, predicted
  uint64_t reads = 0;                         // rows that were read out beside those of final tokens
};

class Pipeline {
 public:
  Pipeline(Passes& passes, Sequence& sequence, Sampler& sampler, Drafts& drafts);

  // The text so far is ids [count], whose first `sequence.cached` tokens were run. Nothing is in flight afterwards.
  void begin(const int64_t* ids, size_t count);
  // Runs the token `id` at `sequence.cached`, where there is room for it → its logits, valid until the next call.
  const float* step(int64_t id);
  uint32_t ran() const { return ran_; }
  int64_t chosen() const { return chosen_; }  // what the sampler makes of those logits
  // Takes back all drafts, so that the sequence holds final tokens only.
  void cancel();
  const Drafts& drafts() const { return drafts_; }

  DraftOptions options;
  DraftCounts counts;
  // For measurements: drafts at position i are truth[i], or another token where `wrong` [i].
  std::vector<int64_t> truth;
  std::vector<uint8_t> wrong;

 private:
  enum Source : uint8_t { LOOKED_UP, PREDICTED, FINAL };
  struct Guess {
    uint32_t depth, margin;
    int64_t token;
  };
  struct Flying {
    Token token;
    double odds = 1;            // that it is right, if those before it are
    Source source = FINAL;
    bool layers = false;        // have the epilogue's layers seen it?
    bool looked = false;        // has the text been asked what comes next?
    Lookup::Found place;        // what it says
    int64_t follows = -1;       // what a depth says comes next, and the odds of that
    double follows_odds = 0;
    int64_t chosen = NO_TOKEN;  // what the last depth says
    std::vector<Guess> guesses;
    std::vector<float> logits;  // once it is done, of one that is not the oldest
  };
  struct Draft {
    int64_t token = -1;
    double odds = 0;
    Source source = LOOKED_UP;
  };

  Acceptance& known() const;
  void learn(int64_t id);
  void feed(int64_t id, double odds, Source source);
  const Lookup::Found& place_behind(Flying& newest);
  Draft next_draft();
  void feed_drafts();
  bool may_feed(uint32_t position) const;
  void pass();
  void pick_reads();
  bool wants_draft(size_t number);
  bool wants_judge(size_t number) const;
  void take_reads();
  void compare(size_t number);
  void refute_from(size_t first, bool counted = true);
  double chain(size_t number) const;  // the odds that the tokens up to this one are right

  Passes& passes_;
  Sequence& sequence_;
  Sampler& sampler_;
  Drafts& drafts_;
  Lookup text_;
  std::deque<std::unique_ptr<Flying>> flight_;
  std::vector<std::unique_ptr<Flying>> spare_;
  std::vector<Guess> guesses_;      // of the last final token
  Lookup::Found looked_up_;         // behind it
  Load load_;                       // of the pass in progress
  uint32_t looked_ = 0;             // tokens fed in it from the text
  std::vector<Token*> tokens_;
  std::vector<Read> reads_;
  std::vector<size_t> read_;        // of flight_, of those reads that are wanted
  std::vector<uint8_t> wanted_;     // of flight_: whether it is read out
  std::vector<int64_t> behind_;     // ids in flight behind the oldest
  std::vector<float> logits_;
  bool alone_ = false;              // nothing can be taken back: a layer keeps its last row only
  bool in_turn_ = false;            // no two tokens are fed in one pass
  uint32_t ran_ = 0;
  int64_t chosen_ = NO_TOKEN;
};

}  // namespace edgeloop::decode
