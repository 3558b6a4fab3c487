#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>

namespace edgeloop::decode {

namespace {

constexpr double LOG_2 = 0.6931471805599453;
constexpr uint32_t FIRST_SORTED = 64;  // of the likeliest tokens: top-p mostly ends within them

void multiply(uint64_t a, uint64_t b, uint64_t& high, uint64_t& low) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  high = uint64_t(product >> 64);
  low = uint64_t(product);
}

// How large the noise of a draw can be. With w = 1 − u = (2^53 − (bits >> 11)) / 2^53: −log u ≥ w, so that the noise is at
// most −log w, and w ≥ 2^(b − 54) where w · 2^53 has b bits.
double most_noise(uint64_t bits) {
  const uint64_t w = (uint64_t(1) << 53) - (bits >> 11);
  return (54 - (64 - __builtin_clzll(w))) * LOG_2 + 1e-9;
}

// The largest number but that of `likeliest`.
double second_of(const float* logits, uint32_t count, uint32_t likeliest) {
  float second = -std::numeric_limits<float>::infinity();
  for (uint32_t i = 0; i < count; i++)
    if (i != likeliest && logits[i] > second) second = logits[i];
  return double(second);
}

// As numpy adds doubles that lie side by side: eight sums of up to 128, halves of more.
double pairwise(const double* x, size_t n) {
  if (n < 8) {
    double sum = -0.0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
  }
  if (n <= 128) {
    double r[8];
    for (int j = 0; j < 8; j++) r[j] = x[j];
    size_t i = 8;
    for (; i + 8 <= n; i += 8)
      for (int j = 0; j < 8; j++) r[j] += x[i + size_t(j)];
    double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; i++) sum += x[i];
    return sum;
  }
  const size_t half = n / 2 - n / 2 % 8;
  return pairwise(x, half) + pairwise(x + half, n - half);
}

// The first of the largest logits, or `count` where one is not a number. Lanes of their own, which a compiler can put into
// registers.
uint32_t largest(const float* logits, uint32_t count) {
  constexpr uint32_t LANES = 16, BLOCK = 16 * LANES;
  float most = -std::numeric_limits<float>::infinity();
  uint32_t block = 0;  // where it is
  for (uint32_t first = 0; first < count; first += BLOCK) {
    const uint32_t end = std::min(first + BLOCK, count);
    float lanes[LANES];
    uint32_t odd[LANES] = {};
    std::fill(lanes, lanes + LANES, -std::numeric_limits<float>::infinity());
    uint32_t i = first;
    for (; i + LANES <= end; i += LANES)
      for (uint32_t j = 0; j < LANES; j++) {
        const float x = logits[i + j];
        lanes[j] = x > lanes[j] ? x : lanes[j];
        odd[j] |= uint32_t(x != x);
      }
    for (; i < end; i++) {
      lanes[0] = std::max(lanes[0], logits[i]);
      odd[0] |= uint32_t(logits[i] != logits[i]);
    }
    if (std::any_of(odd, odd + LANES, [](uint32_t each) { return each != 0; })) return count;
    const float here = *std::max_element(lanes, lanes + LANES);
    if (here > most) most = here, block = first;
  }
  uint32_t found = block;
  while (logits[found] != most) found++;
  return found;
}

}  // namespace

void Philox::draw(uint64_t block, uint64_t out[4]) const {
  // The counter is counted before it is used. 2^64 blocks are never drawn, so there is nothing to carry.
  uint64_t c0 = block + 1, c1 = 0, c2 = 0, c3 = position_, k0 = seed_, k1 = 0;
  for (int round = 0; round < 10; round++) {
    uint64_t high0, low0, high1, low1;
    multiply(0xD2E7470EE14C6C93u, c0, high0, low0);
    multiply(0xCA5A826395121157u, c2, high1, low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B97F4A7C15u;
    k1 += 0xBB67AE8584CAA73Bu;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

double gumbel(uint64_t bits) {
  const double uniform = double(bits >> 11) * 0x1p-53;
  return -std::log(-std::log(std::max(uniform, std::numeric_limits<double>::min())));
}

int64_t Sampler::choose(const float* logits, uint32_t count, uint64_t position, double* margin) {
  if (margin) *margin = 0;
  if (!count) return NO_TOKEN;
  const uint32_t likeliest = largest(logits, count);
  if (likeliest == count || logits[likeliest] == -std::numeric_limits<float>::infinity()) return NO_TOKEN;
  if (sampling_.temperature == 0) {
    if (margin) *margin = double(logits[likeliest]) - second_of(logits, count, likeliest);
    return likeliest;
  }
  const Philox random(sampling_.seed, position);
  if (!sampling_.top_k && sampling_.top_p >= 1 && sampling_.min_p <= 0)
    return noisy(logits, count, likeliest, random, margin);
  filter(logits, count, logits[likeliest]);
  uint64_t drawn[4], block = ~uint64_t(0);
  uint32_t chosen = 0;
  double best = 0, second = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < kept_.size(); i++) {
    if (kept_[i] / 4 != block) random.draw(block = kept_[i] / 4, drawn);
    const double score = scores_[i] + gumbel(drawn[kept_[i] % 4]);
    if (i == 0 || score > best) {
      if (i) second = best;
      best = score, chosen = kept_[i];
    } else {
      second = std::max(second, score);
    }
  }
  if (margin) *margin = best - second;
  return chosen;
}

int64_t Sampler::noisy(const float* logits, uint32_t count, uint32_t likeliest, const Philox& random,
    double* margin) const {
  const double temperature = sampling_.temperature, inverse = 1 / temperature;
  uint64_t drawn[4];
  random.draw(likeliest / 4, drawn);
  uint32_t chosen = likeliest;
  double best = double(logits[likeliest]) / temperature + gumbel(drawn[likeliest % 4]);
  // No draw has more noise than 53 log 2, so most tokens of a clear choice are out before they are drawn.
  // Where the margin is wanted, those that could be second are drawn too.
  double second = margin ? -std::numeric_limits<double>::infinity() : best;
  const auto reach = [&](double noise) { return ((margin ? second : best) - noise) * temperature; };
  double least = reach(53 * LOG_2 + 1e-6);
  for (uint32_t first = 0; first < count; first += 4) {
    const uint32_t end = std::min(first + 4, count);
    bool hopeless = true;
    for (uint32_t i = first; i < end; i++) hopeless &= double(logits[i]) < least;
    if (hopeless) continue;
    random.draw(first / 4, drawn);
    for (uint32_t i = first; i < end; i++) {
      const double about = double(logits[i]) * inverse;  // a division takes as long as all else here
      const double most = about + std::abs(about) * 1e-14 + most_noise(drawn[i % 4]);
      if (most < (margin ? second : best) || i == likeliest) continue;
      const double noisy = double(logits[i]) / temperature + gumbel(drawn[i % 4]);
      if (noisy > best || (noisy == best && i < chosen)) {
        second = best, best = noisy, chosen = i;
        least = reach(53 * LOG_2 + 1e-6);
      } else if (margin && noisy > second) {
        second = noisy;
        least = reach(53 * LOG_2 + 1e-6);
      }
    }
  }
  if (margin) *margin = best - second;
  return chosen;
}

void Sampler::filter(const float* logits, uint32_t count, float most) {
  kept_.clear();
  if (sampling_.top_k && sampling_.top_k < count) {
    filter_top_k(logits, count);
  } else {
    // With min-p alone most are out at once; which ones exactly is seen below.
    const double reach = sampling_.top_p < 1 ? INFINITY : -std::log(sampling_.min_p) * sampling_.temperature;
    const double least = double(most) - reach * (1 + 1e-9) - std::abs(double(most)) * 1e-9;
    for (uint32_t i = 0; i < count; i++)
      if (!(double(logits[i]) < least)) kept_.push_back(i);
  }
  scores_.clear();
  for (uint32_t i : kept_) scores_.push_back(double(logits[i]) / sampling_.temperature);
  const auto keep = [&](double least) {
    size_t n = 0;
    for (size_t i = 0; i < kept_.size(); i++)
      if (scores_[i] >= least) kept_[n] = kept_[i], scores_[n++] = scores_[i];
    kept_.resize(n);
    scores_.resize(n);
  };
  if (sampling_.top_p < 1) {
    filter_top_p();
    keep(sorted_.back());
  }
  if (sampling_.min_p > 0) keep(*std::max_element(scores_.begin(), scores_.end()) + std::log(sampling_.min_p));
}

// Candidates are gathered above a bar, which rises whenever there are twice as many as are wanted.
void Sampler::filter_top_k(const float* logits, uint32_t count) {
  const size_t k = sampling_.top_k;
  size_t most = std::max<size_t>(2 * k, 256);
  float bar = -std::numeric_limits<float>::infinity();
  const auto raise = [&] {
    const auto larger = [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; };
    const auto kth = kept_.begin() + std::ptrdiff_t(k - 1);
    std::nth_element(kept_.begin(), kth, kept_.end(), larger);
    bar = logits[*kth];
    kept_.erase(std::remove_if(kth, kept_.end(), [&](uint32_t i) { return logits[i] < bar; }), kept_.end());
  };
  for (uint32_t i = 0; i < count; i++) {
    if (logits[i] < bar) continue;
    kept_.push_back(i);
    if (kept_.size() < most) continue;
    raise();
    most = std::max(most, 2 * kept_.size());  // many may be as large as the k-th
  }
  raise();
  std::sort(kept_.begin(), kept_.end());
}

// sorted_ becomes the largest scores whose probabilities together reach top_p. Few are mostly enough, and no more are
// sorted.
void Sampler::filter_top_p() {
  const double most = *std::max_element(scores_.begin(), scores_.end());
  odds_.clear();
  for (double score : scores_) odds_.push_back(std::exp(score - most));
  const double total = pairwise(odds_.data(), odds_.size());
  // All that are less likely than this together have less than what top_p leaves out.
  const double least = (1 - sampling_.top_p) * total / double(odds_.size()) * (1 - 1e-6);
  sorted_.clear();
  for (size_t i = 0; i < odds_.size(); i++)
    if (odds_[i] >= least) sorted_.push_back(scores_[i]);
  double reached = 0;
  size_t done = 0;
  for (size_t count = FIRST_SORTED; done < sorted_.size(); count *= 8) {
    const size_t end = std::min(count, sorted_.size());
    const auto at = [&](size_t i) { return sorted_.begin() + std::ptrdiff_t(i); };
    if (end < sorted_.size()) std::nth_element(at(done), at(end - 1), sorted_.end(), std::greater<>());
    std::sort(at(done), at(end), std::greater<>());
    for (; done < end; done++) {
      reached += std::exp(sorted_[done] - most) / total;
      if (reached >= sampling_.top_p) return sorted_.resize(done + 1);
    }
  }
}

}  // namespace edgeloop::decode
