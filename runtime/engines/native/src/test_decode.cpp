// What whole tokens are chosen and let go by, against plain loops: the sampler, the rules, what waits for a depth and which
// rows are whose. Exit status 0: all hold.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "decode/sampler.h"
#include "decode/sequence.h"
#include "error.h"
#include "test_lot.h"

using namespace edgeloop;
using namespace edgeloop::decode;
using namespace edgeloop::test;

namespace {

// ---- the sampler --------------------------------------------------------------------------------------------------

void test_philox() {
  // Random123's known answer for a counter and a key of zeros; a block's counter is counted before it is used.
  const uint64_t wanted[4] = {0x16554d9eca36314cu, 0xdb20fe9d672d0fdcu, 0xd7e772cee186176bu, 0x7e68b68aec7ba23bu};
  uint64_t found[4];
  Philox(0, 0).draw(~uint64_t(0), found);
  expect(std::equal(found, found + 4, wanted), "Philox of zeros");
}

// Scores, filters and noise of the whole vocabulary, as runtime/decode/sampling.py has them.
int64_t plain_choice(const std::vector<float>& logits, const Sampling& s, uint64_t position) {
  std::vector<double> scores;
  for (float logit : logits) scores.push_back(double(logit) / s.temperature);
  std::vector<bool> kept(logits.size(), true);
  const auto keep = [&](double least) {
    for (size_t i = 0; i < scores.size(); i++) kept[i] = kept[i] && scores[i] >= least;
  };
  const auto left = [&] {
    std::vector<double> found;
    for (size_t i = 0; i < scores.size(); i++)
      if (kept[i]) found.push_back(scores[i]);
    std::sort(found.rbegin(), found.rend());
    return found;
  };
  if (s.top_k && s.top_k < logits.size()) keep(left()[s.top_k - 1]);
  if (s.top_p < 1) {
    const std::vector<double> sorted = left();
    double total = 0, reached = 0;
    for (double score : sorted) total += std::exp(score - sorted[0]);
    size_t last = 0;
    for (; last + 1 < sorted.size(); last++)
      if ((reached += std::exp(sorted[last] - sorted[0]) / total) >= s.top_p) break;
    keep(sorted[last]);
  }
  if (s.min_p > 0) keep(left()[0] + std::log(s.min_p));
  int64_t chosen = NO_TOKEN;
  double best = 0;
  for (size_t i = 0; i < scores.size(); i++) {
    uint64_t drawn[4];
    Philox(s.seed, position).draw(i / 4, drawn);
    const double score = scores[i] + gumbel(drawn[i % 4]);
    if (kept[i] && (chosen == NO_TOKEN || score > best)) best = score, chosen = int64_t(i);
  }
  return chosen;
}

void test_choices() {
  Lot lot(1);
  std::vector<int> chosen(600);
  for (int round = 0; round < 4000; round++) {
    std::vector<float> logits(1 + lot.below(600));
    const double spread = std::pow(10, lot.below(4)) * 0.1;
    const bool rounded = lot.below(3) == 0;  // many are equal
    for (float& x : logits) {
      x = float((lot.next() - 0.5) * spread);
      if (rounded) x = std::round(x);
      if (lot.below(9) == 0 && logits.size() > 1) x = -std::numeric_limits<float>::infinity();
    }
    logits[lot.below(uint32_t(logits.size()))] = float(spread / 2);
    Sampling s;
    s.temperature = 0.2 + lot.next() * 2;
    s.top_k = lot.below(2) * lot.below(400);
    s.top_p = lot.below(2) ? 1 : 0.05 + 0.94 * lot.next();
    s.min_p = lot.below(2) * 0.1 * lot.next();
    s.seed = lot.below(1000);
    const uint64_t position = lot.below(1 << 30);
    const int64_t found = Sampler(s).choose(logits.data(), uint32_t(logits.size()), position);
    expect(found == plain_choice(logits, s, position), "a choice, round " + std::to_string(round));
    if (found >= 0) chosen[size_t(found)]++;
  }
  expect(std::count(chosen.begin(), chosen.end(), 0) < 300, "most tokens are chosen some time");
  const float first[] = {1, 3, 3}, none[] = {-INFINITY, -INFINITY}, odd[] = {1, NAN};
  expect(Sampler().choose(first, 3, 0) == 1, "the first of equal logits");
  for (double temperature : {0.0, 1.0}) {
    Sampling s;
    s.temperature = temperature;
    expect(Sampler(s).choose(none, 2, 0) == NO_TOKEN && Sampler(s).choose(odd, 2, 0) == NO_TOKEN, "no token is left");
  }
}

// Of two tokens with the odds 3 : 1 the first is chosen three times as often.
void test_odds() {
  const float logits[] = {std::log(3.f), 0};
  Sampling s;
  s.temperature = 1;
  int first = 0;
  for (uint64_t position = 0; position < 20000; position++) first += Sampler(s).choose(logits, 2, position) == 0;
  expect(std::abs(first - 15000) < 250, "odds of 3 : 1");
}

// ---- rules --------------------------------------------------------------------------------------------------------

el_policy policy_of(el_rule rule, el_skipped skipped, const float* numbers) {
  el_policy policy = {};
  policy.struct_bytes = sizeof policy;
  policy.rule = rule;
  policy.depths = policy.stop = 3;
  policy.skipped = skipped;
  policy.temperature = policy.alpha = 1;
  policy.thresholds = policy.weight = policy.bias = policy.capacity = numbers;
  return policy;
}

bool refused(const el_policy& policy) {
  try {
    Policy made(policy, 2, false);
    return false;
  } catch (const Error& error) {
    return error.code == EL_USAGE && std::strlen(error.text) > 10;
  }
}

void test_exit_rules() {
  std::vector<double> stay;
  const float thresholds[] = {0.5f, 0.2f}, state[] = {3, 4}, before[] = {3, 2};
  el_policy policy = policy_of(EL_RULE_LATENT, EL_SKIPPED_EXACT, thresholds);
  const Rule latent(policy, 2);  // moved by 2, 5 long: 0.4
  expect(latent.leaves(0, state, before, stay), "0.4 is at most 0.5");
  expect(!latent.leaves(1, state, before, stay), "0.4 is more than 0.2");
  policy.stop = 2;
  expect(Rule(policy, 2).leaves(1, state, before, stay), "the last depth that may be run");
  const float weight[] = {0, 0, 1, 0}, bias[] = {0, 0};  // σ(0) = 0.5; σ(3 / rms), rms = √12.5
  policy = policy_of(EL_RULE_PROBE, EL_SKIPPED_EXACT, weight);
  policy.bias = bias;
  const float half[] = {0.5f, 0.71f}, more[] = {0.51f, 0.69f};
  policy.thresholds = half;
  expect(Rule(policy, 2).leaves(0, state, before, stay) && !Rule(policy, 2).leaves(1, state, before, stay), "probes");
  policy.thresholds = more;
  expect(!Rule(policy, 2).leaves(0, state, before, stay) && Rule(policy, 2).leaves(1, state, before, stay), "the same");
  policy.rule = EL_RULE_GATE;  // 1 − 0.5, then 1 − 0.25
  const float gates[] = {0.6f, 0.75f};
  policy.thresholds = gates;
  expect(!Rule(policy, 2).leaves(0, state, before, stay) && Rule(policy, 2).leaves(1, state, before, stay), "the gate");
}

void test_routers() {
  const float weight[] = {0, 0, 1, 0, -1, 0}, state[] = {3, 4}, half[] = {0.5f}, part[] = {0.5f, 0.5f, 0.5f};
  el_policy policy = policy_of(EL_RULE_EXPERT, EL_SKIPPED_SKIP, weight);
  policy.thresholds = half;
  policy.capacity = part;
  policy.gated = 1;
  policy.alpha = 0.5f;
  const Rule expert(policy, 2);
  expect(expert.expert(0, state).last == 1 && expert.expert(0, state).gate == 0.25f, "σ(0) goes on, half as strong");
  expect(expert.expert(1, state).last == 1 && expert.expert(2, state).last == 0, "σ(3) goes on, σ(−3) does not");
  const float all[] = {1, 1, 1};
  policy.capacity = all;
  expect(Rule(policy, 2).expert(2, state).last == 1, "a depth that takes everybody");
  policy.rule = EL_RULE_TOKEN;
  policy.squash = EL_SQUASH_SOFTMAX;
  const float bias[] = {0, 0, 2};
  policy.bias = all;
  expect(Rule(policy, 2).token(state).last == 1, "the likeliest depth");
  policy.bias = bias;
  expect(Rule(policy, 2).token(state).last == 2, "with its bias");
  policy.stop = 1;
  expect(Rule(policy, 2).token(state).last == 0, "not beyond the last one");
}

void test_refusals() {
  const float numbers[64] = {};
  expect(!refused(policy_of(EL_RULE_NEVER, EL_SKIPPED_NONE, nullptr)), "never");
  expect(refused(policy_of(EL_RULE_LATENT, EL_SKIPPED_NONE, numbers)), "nothing said of skipped K and V");
  expect(refused(policy_of(EL_RULE_EXPERT, EL_SKIPPED_EXACT, numbers)), "a router without gaps");
  expect(refused(policy_of(EL_RULE_PROBE, EL_SKIPPED_EXACT, nullptr)), "no weights");
  expect(refused(policy_of(el_rule(99), EL_SKIPPED_EXACT, numbers)), "an unknown rule");
  el_policy policy = policy_of(EL_RULE_DEPTH, EL_SKIPPED_EXACT, numbers);
  policy.shared = 1;
  expect(refused(policy), "one slot, and something to skip");
  policy = policy_of(EL_RULE_DEPTH, EL_SKIPPED_EXACT, numbers);
  policy.stop = 4;
  expect(refused(policy), "more depths than there are");
}

// ---- sequences ----------------------------------------------------------------------------------------------------

void test_waiting() {
  Waiting waiting;
  const float states[][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}};
  for (int64_t position : {1, 3, 2, 0}) waiting.push(position, states[position], 2);
  waiting.push(2, states[2], 2);  // again
  expect(waiting.positions == std::vector<int64_t>{0, 1, 2, 3}, "in order, each once");
  std::vector<int64_t> positions;
  std::vector<float> taken;
  waiting.take(1, 2, positions, taken);
  expect(positions == std::vector<int64_t>{0, 1} && taken == std::vector<float>{0, 1, 2, 3}, "those up to 1");
  waiting.truncate(3, 2);
  expect(waiting.positions == std::vector<int64_t>{2} && waiting.states == std::vector<float>{4, 5}, "those before 3");
}

void test_rows() {
  const float numbers[16] = {};
  const Policy exact(policy_of(EL_RULE_DEPTH, EL_SKIPPED_EXACT, numbers), 2, false);
  const Policy skip(policy_of(EL_RULE_DEPTH, EL_SKIPPED_SKIP, numbers), 2, false);
  const int64_t positions[] = {0, 1, 2, 3, 4};
  Sequence plain(exact, 0, 2), gaps(skip, 0, 2);
  plain.wrote(1, 0, positions, 5);
  plain.wrote(1, 2, positions + 2, 1);  // a draft's row behind stays
  expect(plain.filled[1] == 5 && plain.row(1, 7) == 7, "a row is a position");
  gaps.wrote(1, 0, positions + 1, 1);
  gaps.wrote(1, 1, positions + 4, 1);
  expect(gaps.row(1, 7) == 2 && gaps.rows_before(1, 4) == 1, "a row is a place among those that were there");
  gaps.finished(5);
  gaps.truncate(4);
  expect(gaps.filled[1] == 1 && gaps.held[1] == std::vector<int64_t>{1} && gaps.cached == 4, "back to 4");
  el_policy one = policy_of(EL_RULE_NEVER, EL_SKIPPED_NONE, nullptr);
  one.shared = 1;
  const Policy shared(one, 2, false);
  Sequence all(shared, 0, 2);
  all.wrote(0, 0, positions, 5);
  all.finished(5);
  expect(all.filled[2] == 5, "one slot serves all depths");
}

}  // namespace

int main() {
  test_philox();
  test_choices();
  test_odds();
  test_exit_rules();
  test_routers();
  test_refusals();
  test_waiting();
  test_rows();
  return ended("decode");
}
