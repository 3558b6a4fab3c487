#include "rules.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "../error.h"
#include "../format.h"

namespace edgeloop::decode {

namespace {

constexpr double EPSILON = 1e-6f;  // numpy's is a float, too
constexpr uint32_t MAX_HIDDEN = 1u << 16;

// Four sums, so that they need not wait for each other.
double dot(const float* a, const float* b, uint32_t n) {
  double sums[4] = {};
  uint32_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (uint32_t j = 0; j < 4; j++) sums[j] += double(a[i + j]) * double(b[i + j]);
  for (; i < n; i++) sums[0] += double(a[i]) * double(b[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double sigmoid(double x) { return std::tanh(x * 0.5) * 0.5 + 0.5; }

double squash(double z, el_squash kind) {
  return kind == EL_SQUASH_SIGMOID ? sigmoid(z) : kind == EL_SQUASH_TANH ? std::tanh(z) : z;
}

std::vector<float> copied(const float* from, size_t count, const char* name) {
  if (!from) fail(EL_USAGE, "%s of a policy is NULL, wanted %zu numbers", name, count);
  return std::vector<float>(from, from + count);
}

}  // namespace

Rule::Rule(const el_policy& policy, uint32_t width)
    : kind(el_rule(policy.rule)), depths(policy.depths), stop(policy.stop), width(width) {
  if (policy.rule > EL_RULE_TOKEN) fail(EL_USAGE, "there is no el_rule %u", policy.rule);
  if (depths < 1 || depths > file::MAX_DEPTHS)
    fail(EL_USAGE, "a policy of %u depths, wanted 1 to %u", depths, file::MAX_DEPTHS);
  if (stop < 1 || stop > depths) fail(EL_USAGE, "a rule that stops after %u depths, wanted 1 to %u", stop, depths);
  switch (kind) {
    case EL_RULE_NEVER:
    case EL_RULE_DEPTH: return;
    case EL_RULE_LATENT: break;
    case EL_RULE_GATE:
      head_.weight = copied(policy.weight, width, "weight");
      bias_ = copied(policy.bias, 1, "bias");
      break;
    case EL_RULE_PROBE:
      head_.weight = copied(policy.weight, size_t(depths - 1) * width, "weight");
      bias_ = copied(policy.bias, depths - 1, "bias");
      break;
    case EL_RULE_EXPERT:
    case EL_RULE_TOKEN:
      if (policy.squash > EL_SQUASH_SOFTMAX) fail(EL_USAGE, "there is no el_squash %u", policy.squash);
      squash_ = el_squash(policy.squash);
      gated_ = policy.gated, everyone_ = policy.everyone;
      temperature_ = policy.temperature, alpha_ = policy.alpha;
      read_head(head_, policy.weight, policy.hidden, policy);
      if (kind == EL_RULE_TOKEN) {
        bias_ = copied(policy.bias, depths, "bias");
        return;
      }
      has_auxiliary_ = policy.auxiliary != nullptr;
      if (has_auxiliary_) read_head(auxiliary_, policy.auxiliary, policy.auxiliary_hidden, policy);
      capacity_ = copied(policy.capacity, depths, "capacity");
      thresholds_ = copied(policy.thresholds, 1, "thresholds");
      return;
  }
  thresholds_ = copied(policy.thresholds, depths - 1, "thresholds");
}

void Rule::read_head(Head& head, const float* weight, const float* hidden, const el_policy& policy) {
  if (policy.hidden_width > MAX_HIDDEN || policy.hidden_count > file::MAX_DEPTHS)
    fail(EL_USAGE, "%u heads of %u numbers", policy.hidden_count, policy.hidden_width);
  head.hidden_count = policy.hidden_count, head.hidden_width = policy.hidden_width;
  const bool deep = head.hidden_count && head.hidden_width;
  head.weight = copied(weight, size_t(depths) * (deep ? head.hidden_width : width), "weight");
  if (deep) head.hidden = copied(hidden, size_t(head.hidden_count) * head.hidden_width * width, "hidden");
}

bool Rule::leaves(uint32_t depth, const float* state, const float* before, std::vector<double>& stay) const {
  // A gate counts every depth, also those after which nothing is asked.
  const double gate = kind == EL_RULE_GATE ? this->gate(state, stay) : 0;
  if (depth + 1 >= stop) return true;
  switch (kind) {
    case EL_RULE_LATENT: return float(latent(state, before)) <= thresholds_[depth];
    case EL_RULE_GATE: return float(gate) >= thresholds_[depth];
    case EL_RULE_PROBE: return float(probe(depth, state)) >= thresholds_[depth];
    default: return false;
  }
}

double Rule::latent(const float* state, const float* before) const {
  double moved = 0, length = 0;
  for (uint32_t i = 0; i < width; i++) {
    const double step = double(state[i]) - double(before[i]);
    moved += step * step;
    length += double(state[i]) * double(state[i]);
  }
  return std::sqrt(moved) / (std::sqrt(length) + EPSILON);
}

double Rule::probe(uint32_t depth, const float* state) const {
  const double rms = std::sqrt(dot(state, state, width) / width + EPSILON);
  return sigmoid(dot(state, head_.weight.data() + size_t(depth) * width, width) / rms + bias_[depth]);
}

double Rule::gate(const float* state, std::vector<double>& stay) const {
  stay.push_back(sigmoid(-(dot(state, head_.weight.data(), width) + bias_[0])));
  double product = 1;
  for (auto each = stay.rbegin(); each != stay.rend(); ++each) product *= *each;
  return 1 - product;
}

double Rule::score(const Head& head, uint32_t depth, const float* state) const {
  const double temperature = temperature_;
  if (head.hidden.empty()) {
    const float* weight = head.weight.data() + size_t(depth) * width;
    double sum = 0;
    for (uint32_t i = 0; i < width; i++) sum += double(state[i]) / temperature * double(weight[i]);
    return sum;
  }
  const uint32_t number = std::min(depth, head.hidden_count - 1);
  const float* row = head.hidden.data() + size_t(number) * head.hidden_width * width;
  const float* weight = head.weight.data() + size_t(depth) * head.hidden_width;
  double sum = 0;
  for (uint32_t i = 0; i < head.hidden_width; i++, row += width) {
    double x = 0;
    for (uint32_t j = 0; j < width; j++) x += double(state[j]) / temperature * double(row[j]);
    sum += x * (1 + std::erf(x / std::sqrt(2.0))) * 0.5 * double(weight[i]);
  }
  return sum;
}

Sent Rule::expert(uint32_t depth, const float* state) const {
  const float p = float(squash(score(head_, depth, state), squash_));
  bool on = true;
  if (!everyone_ && capacity_[depth] < 1) {
    const float judge =
        has_auxiliary_ ? float(squash(score(auxiliary_, depth, state), EL_SQUASH_SIGMOID)) : p;
    on = judge >= thresholds_[0];
  }
  return {on, gated_ ? alpha_ * p : 1.f};
}

Sent Rule::token(const float* state) const {
  std::vector<double> p(depths);
  for (uint32_t depth = 0; depth < depths; depth++) p[depth] = score(head_, depth, state);
  if (squash_ == EL_SQUASH_SOFTMAX) {
    const double most = *std::max_element(p.begin(), p.end());
    double total = 0;
    for (double& each : p) each = std::exp(each - most), total += each;
    for (double& each : p) each /= total;
  } else {
    for (double& each : p) each = squash(each, squash_);
  }
  uint32_t chosen = 0;
  for (uint32_t depth = 1; depth < depths; depth++)
    if (float(p[depth]) + bias_[depth] > float(p[chosen]) + bias_[chosen]) chosen = depth;
  chosen = everyone_ ? depths - 1 : std::min(chosen, stop - 1);
  return {chosen, gated_ ? float(p[chosen]) * alpha_ : 1.f};
}

}  // namespace edgeloop::decode
