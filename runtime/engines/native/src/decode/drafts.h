// Whether a draft pays: what calls cost by their rows, how often drafts were right, and what follows from both.
//
// A token in flight shares the passes of the tokens before it. If it is right, it saves what those passes would have cost
// it alone; if it is wrong, its rows are wasted. Both follow from the cost of a call with one row more, so that each
// decision is a sum over the passes that the newest token still has to run. Nothing here runs a model or reads a clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lookup.h"

namespace edgeloop::decode {

// Nanoseconds of a stage by its rows. What is learnt is a ratio to how fast the machine is just now, so that a machine
// that others use for a while changes no decision.
class Cost {
 public:
  static constexpr uint32_t MOST = 12;  // rows
  // A measurement before the first token; those between are interpolated, and those beyond go on as the last two do.
  void set(uint32_t rows, double nanoseconds);
  void saw(uint32_t rows, double nanoseconds, double pace);
  double at(uint32_t rows) const;
  double more(uint32_t rows) const { return at(rows + 1) - at(rows); }  // one row more
  bool known() const { return known_[1]; }

 private:
  void fill();
  double measured_[MOST + 1] = {}, all_[MOST + 1] = {};
  bool known_[MOST + 1] = {};
};

struct Costs {
  Cost prologue, block, read;  // read: the epilogue with logits, and a token chosen
  double token(double depths) const { return prologue.at(1) + depths * block.at(1) + read.at(1); }  // sequentially
};

// How often something is right, of about the last MEMORY times; at first a guess that counts as STRENGTH times.
class Odds {
 public:
  static constexpr double MEMORY = 32, STRENGTH = 6;
  explicit Odds(double guess = 0.5) : right_(guess * STRENGTH), all_(STRENGTH) {}
  void saw(bool right);
  double value() const { return right_ / all_; }
  double seen() const { return all_ - STRENGTH; }

 private:
  double right_, all_;
};

// The odds of one of two guesses that differ, and of two that are the same.
inline double against(double odds, double other) { return odds >= 1 ? 1 : odds * (1 - other) / (1 - odds * other); }
inline double together(double odds, double other) { return 1 - (1 - odds) * (1 - other); }

// What was learnt of a model and how tokens are chosen; a session keeps it from answer to answer.
struct Acceptance {
  static constexpr uint32_t MARGINS = 7;  // by how much the chosen score is larger than the second
  explicit Acceptance(uint32_t depths);
  static uint32_t margin(double difference);

  std::vector<Odds> model;             // [depth][margin]: a shallow depth's prediction
  std::vector<double> often;           // [depth][margin]: how often there is such a margin
  std::vector<Odds> lookup;            // [Lookup::KINDS]
  void saw(uint32_t depth, uint32_t margin, bool right);
  double mean(uint32_t depth) const;   // over margins
};

// How tokens are to be drafted.
struct DraftOptions {
  enum Kind : uint32_t { AUTO = 0, NEVER = 1, ALWAYS = 2 } kind = AUTO;
  // ALWAYS, for tests and measurements: depth whose prediction is fed (none from `depths` − 1 on), whether deeper ones
  // replace it, and how many tokens are looked up at once.
  uint32_t depth = 0, judges = 0, lookups = 0;
};

// A pass, as far as it is made up.
struct Load {
  uint32_t rows = 0;   // of the block
  uint32_t fresh = 0;  // tokens that go through the prologue
  uint32_t reads = 0;  // tokens that are read out
};

class Drafts {
 public:
  static constexpr uint32_t MOST_IN_FLIGHT = Cost::MOST;

  // `depths`: how often the loop runs; `stop`: for a token at most.
  Drafts(uint32_t depths, uint32_t stop);

  Costs costs;
  Acceptance greedy, sampled;

  // What a token is worth that is fed behind one that has run `ran` depths: nanoseconds saved if it is right, lost if not.
  // 0: it is fed in the same pass.
  struct Stakes {
    double right, wrong;
    double least() const { return wrong / (right + wrong); }  // odds from which it pays
  };
  Stakes stakes(const Load& next, uint32_t ran) const;
  // Nanoseconds that are saved on the average, if it is right with probability `odds`.
  double gain(const Load& next, uint32_t ran, double odds) const;
  // Is such a token to be fed? `later`: what may be saved if it is not.
  bool feeds(const Load& next, uint32_t ran, double odds, const Acceptance& known) const;
  // Is the newest token, which has run `ran` depths, to be read out for a draft? `chain`: the odds that it is right
  // itself; `other`: those of what is known to follow without, 0 for nothing.
  bool reads(const Load& now, uint32_t ran, double chain, double other, const Acceptance& known);
  // Is a token that has run `ran` depths to be read out, to see whether what was fed behind it is right? `behind`: the
  // odds of that; `tokens`: how many were fed.
  bool judges(const Load& now, uint32_t ran, double chain, double behind, uint32_t tokens, const Acceptance& known) const;

  // What a pass has cost and what a final token would have cost alone, both by the table: drafts rest where they lose.
  // `ahead`: depths that the tokens behind it have run.
  void passed(const Load& load);
  // How long its stages took, in nanoseconds.
  void took(const Load& load, double prologue, double block, double read);
  void finished(uint32_t ran, uint32_t ahead);
  // Another text begins.
  void begin();
  double saved() const { return saved_; }  // nanoseconds, of all

 private:
  double later(const Load& next, uint32_t ran, double chain, const Acceptance& known) const;
  bool explores(double cost);

  uint32_t most_;
  double depths_;  // that a token runs, on the average
  double saved_ = 0, recent_ = 0, budget_ = 0, pace_ = 1;
  uint32_t rest_ = 0, next_rest_;
};

}  // namespace edgeloop::decode
