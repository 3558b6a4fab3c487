// From logits to a token: the twin of runtime/decode/sampling.py, but for logit bias and penalties, which are the host's.
//
// What is equal to numpy and what is not. The uniform numbers of (seed, position) are those of numpy's Philox4x64-10, bit
// for bit. Logits are divided by the temperature in double, as there. log and exp are the C library's, numpy has its own
// for some processors: a score may differ in the last bit of a double, so that a choice differs only where two scores are
// as near as that. Noise is drawn for those tokens only that could still win: it depends on nothing but the counter.
#pragma once

#include <cstdint>
#include <vector>

namespace edgeloop::decode {

struct Sampling {
  double temperature = 0;  // 0: the largest logit
  uint32_t top_k = 0;      // 0: off
  double top_p = 1, min_p = 0;
  uint64_t seed = 0;
};

// numpy.random.Philox(key=seed, counter=[0, 0, 0, position]): number i of what it draws, in any order.
class Philox {
 public:
  Philox(uint64_t seed, uint64_t position) : seed_(seed), position_(position) {}
  // Numbers 4 block … 4 block + 3.
  void draw(uint64_t block, uint64_t out[4]) const;

 private:
  uint64_t seed_, position_;
};

// Gumbel noise of a draw: −log(−log u), u = (bits >> 11) / 2^53, at least the smallest normal double.
double gumbel(uint64_t bits);

constexpr int64_t NO_TOKEN = -1;  // a logit is not a number, or all are minus infinity

class Sampler {
 public:
  Sampler() = default;
  explicit Sampler(const Sampling& sampling) : sampling_(sampling) {}
  // The token for `position`, given logits [count] of the position before; or NO_TOKEN. Equal scores: the first token.
  // `margin`, if it is not null: by how much its score, noise and all, is larger than the second.
  int64_t choose(const float* logits, uint32_t count, uint64_t position, double* margin = nullptr);
  const Sampling& sampling() const { return sampling_; }

 private:
  int64_t noisy(const float* logits, uint32_t count, uint32_t likeliest, const Philox& random, double* margin) const;
  // Those that top-k, top-p and min-p leave, ascending, in kept_; their scores in scores_.
  void filter(const float* logits, uint32_t count, float most);
  void filter_top_k(const float* logits, uint32_t count);
  void filter_top_p();

  Sampling sampling_;
  std::vector<uint32_t> kept_;
  std::vector<double> scores_, sorted_, odds_;
};

}  // namespace edgeloop::decode
