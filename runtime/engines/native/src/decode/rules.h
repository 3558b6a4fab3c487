// Who leaves after which depth, and whom a router sends on: the twins of runtime/decode/exits.py and routing.py.
//
// Scores are computed in double and rounded to float at the end, here and there, so that the order of a sum decides
// nothing: numpy's and this one's score differ in a bit only where the exact one is a hair from the middle of two floats.
// What a router adds to a state is multiplied and added in float, in both.
#pragma once

#include <cstdint>
#include <vector>

#include "../edgeloop.h"

namespace edgeloop::decode {

// What a router says of a token: whether it goes on, or after which depth it ends, and its gate.
struct Sent {
  uint32_t last;
  float gate;
};

class Rule {
 public:
  // Checks and copies `policy`, of a model whose first carry has `width` numbers; throws an Error with EL_USAGE.
  Rule(const el_policy& policy, uint32_t width);

  el_rule kind;
  uint32_t depths, stop, width;
  bool routed() const { return kind == EL_RULE_EXPERT || kind == EL_RULE_TOKEN; }
  // May a token leave before the last depth? As in Python, where only never says no.
  bool exits_early() const { return kind != EL_RULE_NEVER; }

  // Exit rules: does a token stop after `depth`, which made `state` [width] of `before` [width]? `stay`: the token's
  // own memory, empty at first.
  bool leaves(uint32_t depth, const float* state, const float* before, std::vector<double>& stay) const;
  // Expert choice: does `state` run `depth` (`last` 1) or not (0)?
  Sent expert(uint32_t depth, const float* state) const;
  // Token choice, of what enters the loop.
  Sent token(const float* state) const;

 private:
  struct Head {  // scores of a depth
    std::vector<float> weight, hidden;
    uint32_t hidden_count = 0, hidden_width = 0;
  };
  void read_head(Head& head, const float* weight, const float* hidden, const el_policy& policy);
  double score(const Head& head, uint32_t depth, const float* state) const;
  double latent(const float* state, const float* before) const;
  double probe(uint32_t depth, const float* state) const;
  double gate(const float* state, std::vector<double>& stay) const;

  std::vector<float> thresholds_, bias_, capacity_;
  Head head_, auxiliary_;
  bool has_auxiliary_ = false, gated_ = false, everyone_ = false;
  el_squash squash_ = EL_SQUASH_SIGMOID;
  float temperature_ = 1, alpha_ = 1;
};

}  // namespace edgeloop::decode
