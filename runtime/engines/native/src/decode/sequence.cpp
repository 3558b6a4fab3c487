#include "sequence.h"

#include <algorithm>
#include <cstddef>

#include "../error.h"

namespace edgeloop::decode {

namespace {

std::ptrdiff_t signed_(size_t n) { return std::ptrdiff_t(n); }

}  // namespace

void Waiting::push(int64_t position, const float* state, size_t width) {
  // Nearly always behind all others: a draft may leave before the token in front of it.
  const size_t at = size_t(std::lower_bound(positions.begin(), positions.end(), position) - positions.begin());
  if (at < positions.size() && positions[at] == position)
    return void(std::copy(state, state + width, states.begin() + signed_(at * width)));
  positions.insert(positions.begin() + signed_(at), position);
  states.insert(states.begin() + signed_(at * width), state, state + width);
}

void Waiting::take(int64_t position, size_t width, std::vector<int64_t>& to_positions, std::vector<float>& to_states) {
  const auto end = std::upper_bound(positions.begin(), positions.end(), position);
  const auto states_end = states.begin() + (end - positions.begin()) * signed_(width);
  to_positions.insert(to_positions.end(), positions.begin(), end);
  to_states.insert(to_states.end(), states.begin(), states_end);
  positions.erase(positions.begin(), end);
  states.erase(states.begin(), states_end);
}

void Waiting::truncate(int64_t position, size_t width) {
  const auto end = std::lower_bound(positions.begin(), positions.end(), position);
  states.resize(size_t(end - positions.begin()) * width);
  positions.erase(end, positions.end());
}

Policy::Policy(const el_policy& policy, uint32_t first_carry, bool epilogue_kv)
    : rule(policy, first_carry),
      skipped(el_skipped(policy.skipped)),
      shared(policy.shared != 0),
      gaps(policy.skipped == EL_SKIPPED_SKIP && rule.exits_early()),
      epilogue_kv(epilogue_kv) {
  if (policy.skipped > EL_SKIPPED_SKIP) fail(EL_USAGE, "there is no el_skipped %u", policy.skipped);
  if (shared && skipped != EL_SKIPPED_NONE)
    fail(EL_USAGE, "one slot serves all depths, so that no K and V are missing; wanted EL_SKIPPED_NONE");
  if (!shared && rule.routed() && skipped != EL_SKIPPED_SKIP)
    fail(EL_USAGE, "a router was trained with depths that do not see those that left; wanted EL_SKIPPED_SKIP");
  if (!shared && rule.exits_early() && skipped == EL_SKIPPED_NONE)
    fail(EL_USAGE, "K and V of skipped depths are missing, and EL_SKIPPED_NONE does not say what becomes of them");
  if (!rule.exits_early()) skipped = EL_SKIPPED_NONE;
}

Sequence::Sequence(const Policy& policy, uint32_t number, uint32_t width)
    : policy(policy), number(number), width(width), filled(policy.rule.depths),
      held(policy.gaps ? policy.rule.depths : 0), waiting(policy.rule.depths) {}

bool Sequence::overdue() const {
  return std::any_of(waiting.begin(), waiting.end(),
      [](const Waiting& each) { return each.positions.size() >= WAITING_LIMIT; });
}

void Sequence::wrote(uint32_t depth, uint32_t row, const int64_t* positions, size_t count) {
  filled[depth] = std::max(filled[depth], row + uint32_t(count));
  if (policy.gaps) held[depth].insert(held[depth].end(), positions, positions + count);
}

void Sequence::copied(uint32_t depth, uint32_t row, int64_t position) {
  for (uint32_t deeper = depth + 1; deeper < filled.size(); deeper++) wrote(deeper, row, &position, 1);
}

void Sequence::finished(uint32_t position) {
  cached = position;
  if (policy.shared) std::fill(filled.begin(), filled.end(), position);
}

uint32_t Sequence::rows_before(uint32_t depth, uint32_t position) const {
  if (!policy.gaps) return std::min(filled[depth], position);
  const auto& rows = held[depth];
  return uint32_t(std::lower_bound(rows.begin(), rows.end(), int64_t(position)) - rows.begin());
}

void Sequence::truncate(uint32_t position) {
  for (uint32_t depth = 0; depth < filled.size(); depth++) {
    filled[depth] = rows_before(depth, position);
    if (policy.gaps) held[depth].resize(filled[depth]);
    waiting[depth].truncate(position, width);
  }
  cached = std::min(cached, position);
}

}  // namespace edgeloop::decode
