#include "token.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <numeric>

namespace edgeloop::decode {

namespace {

// What `decide` says, its time counted.
template <class Decide>
auto timed(Sequence& sequence, Decide decide) {
  const auto begin = std::chrono::steady_clock::now();
  const auto found = decide();
  const auto spent = std::chrono::steady_clock::now() - begin;
  sequence.decisions++;
  sequence.decide_nanoseconds += uint64_t(std::chrono::nanoseconds(spent).count());
  return found;
}

}  // namespace

void Token::start(Sequence& sequence, int64_t id, uint32_t position) {
  sequence_ = &sequence;
  position_ = position, ran_ = 0;
  ids_.assign(1, id);
  text_ = none_ = false, read_ = true;
  stay_.clear();
  state_.clear();
  catching_up_ = sequence.policy.rule.exits_early() && sequence.overdue();
  if (catching_up_) return catch_up(1);
  positions_.assign(1, position);
  want(Wants::prologue, 0, position);
}

void Token::start_text(Sequence& sequence, const int64_t* ids, uint32_t count, bool read) {
  sequence_ = &sequence;
  position_ = sequence.cached, ran_ = 0;
  ids_.assign(ids, ids + count);
  positions_.resize(count);
  std::iota(positions_.begin(), positions_.end(), position_);
  catching_up_ = false, text_ = true, read_ = read;
  want(Wants::prologue, 0, position());
}

void Token::start_waiting(Sequence& sequence) {
  sequence_ = &sequence;
  position_ = sequence.cached, ran_ = 0;
  text_ = false, none_ = catching_up_ = true;
  catch_up(1);
}

// Older states that wait run through the depths from `depth` on, or their K and V are filled in.
void Token::catch_up(uint32_t depth) {
  Sequence& s = *sequence_;
  for (; depth < s.filled.size(); depth++) {
    if (s.waiting[depth].empty()) continue;
    positions_.clear(), input_.clear();
    s.waiting[depth].take(INT64_MAX, s.width, positions_, input_);
    const bool fills = s.policy.skipped == EL_SKIPPED_PROPAGATE;
    return want(fills ? Wants::fill : Wants::block, depth, s.row(depth, positions_.front()));
  }
  catching_up_ = false;
  if (none_) return want(Wants::nothing, 0, position());
  positions_.assign(1, position_);
  want(Wants::prologue, 0, position());
}

void Token::take(Caches& caches, const float* rows) {
  Sequence& s = *sequence_;
  const size_t count = positions_.size(), width = s.width;
  if (text_) return ran_text(rows);
  switch (wants_) {
    case Wants::prologue: {
      state_.assign(rows, rows + width);
      before_.assign(rows, rows + s.policy.rule.width);
      if (!s.policy.rule.routed()) return enter(0);
      entered_ = state_;
      if (s.policy.rule.kind == EL_RULE_TOKEN) sent_ = timed(s, [&] { return s.policy.rule.token(rows); });
      return route(0);
    }
    case Wants::fill:
      s.wrote(depth_, row_, positions_.data(), count);
      return catching_up_ ? catch_up(depth_ + 1) : run(depth_);
    case Wants::block:
      s.wrote(depth_, row_, positions_.data(), count);
      if (s.policy.skipped == EL_SKIPPED_EXACT && depth_ + 1 < s.filled.size())
        for (size_t i = 0; i < count; i++) s.waiting[depth_ + 1].push(positions_[i], rows + i * width, width);
      if (!catching_up_) return s.policy.rule.routed() ? ran_route(rows) : ran_depth(caches, rows);
      if (depth_ + 1 < s.filled.size() || !s.policy.epilogue_kv) return catch_up(depth_ + 1);
      input_.assign(rows, rows + count * width);
      return want(Wants::epilogue, depth_, uint32_t(positions_.front()));
    case Wants::epilogue:
      if (catching_up_) return catch_up(depth_ + 1);
      return want(Wants::nothing, depth_, row_);
    case Wants::nothing: return;
  }
}

// The next depth, of a token that no router sends: older ones may have to go first, or along.
void Token::enter(uint32_t depth) {
  Sequence& s = *sequence_;
  Waiting& waiting = s.waiting[depth];
  if (waiting.empty()) return run(depth);
  if (s.policy.skipped == EL_SKIPPED_EXACT || waiting.positions.front() < position_) {
    positions_.clear(), input_.clear();
    waiting.take(position_, s.width, positions_, input_);
    const bool fills = s.policy.skipped == EL_SKIPPED_PROPAGATE;
    return want(fills ? Wants::fill : Wants::block, depth, s.row(depth, positions_.front()));
  }
  run(depth);
}

void Token::run(uint32_t depth) {
  positions_.assign(1, position_);
  input_ = state_;
  want(Wants::block, depth, sequence_->row(depth, position_));
}

void Token::ran_depth(Caches& caches, const float* rows) {
  Sequence& s = *sequence_;
  const Rule& rule = s.policy.rule;
  const size_t count = positions_.size(), width = s.width;
  const float* own = rows + (count - 1) * width;
  state_.assign(own, own + width);
  ran_ = depth_ + 1;
  if (ran_ == rule.depths) {
    // Layers after the loop have seen early states of those that waited: now that they are deep, they see these.
    if (count == 1 || !s.policy.epilogue_kv) return read();
    input_.assign(rows, rows + count * width);
    return want(Wants::epilogue, depth_, uint32_t(positions_.front()));
  }
  if (!rule.exits_early()) return run(depth_ + 1);
  const bool leaves = timed(s, [&] { return rule.leaves(depth_, own, before_.data(), stay_); });
  before_.assign(own, own + rule.width);
  leaves ? leave(caches) : enter(depth_ + 1);
}

void Token::leave(Caches& caches) {
  Sequence& s = *sequence_;
  const uint32_t depths = s.policy.rule.depths;
  if (s.policy.skipped == EL_SKIPPED_PROPAGATE)
    for (uint32_t deeper = depth_ + 1; deeper < depths; deeper++)
      s.waiting[deeper].push(position_, state_.data(), s.width);
  if (s.policy.skipped == EL_SKIPPED_LATEST) {
    const uint32_t slots = caches.slots_per_sequence(), first = s.number * slots;
    const uint32_t own = first + depth_ % slots;
    for (uint32_t slot = own + 1; slot < first + slots; slot++)
      caches.copy(file::BLOCK, slot, position(), caches, own, position(), 1);
    s.copied(depth_, position(), position_);
  }
  read();
}

// Its own logits.
void Token::read() {
  positions_.assign(1, position_);
  input_ = state_;
  want(Wants::epilogue, sequence_->policy.rule.depths - 1, position());
}

// Asks the router whether `depth` is run.
void Token::route(uint32_t depth) {
  const Policy& policy = sequence_->policy;
  const Rule& rule = policy.rule;
  const bool expert = rule.kind == EL_RULE_EXPERT;
  bool on = depth < rule.stop;
  if (on && expert) sent_ = timed(*sequence_, [&] { return rule.expert(depth, state_.data()); });
  on = on && (expert ? sent_.last : sent_.last >= depth);
  // Depth 0 makes the K and V that all depths share, whomever the router chose.
  if (on || (policy.shared && depth == 0)) return run(depth);
  if (!expert)
    for (size_t i = 0; i < state_.size(); i++) state_[i] = entered_[i] + sent_.gate * state_[i];
  read();
}

void Token::ran_route(const float* rows) {
  if (sequence_->policy.rule.kind == EL_RULE_TOKEN) {
    state_.assign(rows, rows + sequence_->width);
  } else if (sent_.last) {
    for (size_t i = 0; i < state_.size(); i++) state_[i] += sent_.gate * rows[i];
  } else {
    return read();  // what depth 0 made of it is dropped
  }
  ran_ = depth_ + 1;
  route(ran_);
}

void Token::ran_text(const float* rows) {
  Sequence& s = *sequence_;
  if (wants_ == Wants::epilogue) return want(Wants::nothing, depth_, row_);
  const bool entered = wants_ == Wants::prologue;
  if (!entered) s.wrote(depth_, row_, positions_.data(), positions_.size()), ran_ = depth_ + 1;
  input_.assign(rows, rows + positions_.size() * s.width);
  if (ran_ < s.policy.rule.depths) return want(Wants::block, ran_, s.row(ran_, position_));
  read_ || s.policy.epilogue_kv ? want(Wants::epilogue, depth_, position()) : want(Wants::nothing, depth_, row_);
}

void Token::cancel() {
  Sequence& s = *sequence_;
  if (text_) return want(Wants::nothing, depth_, row_);
  const bool waited = s.policy.skipped == EL_SKIPPED_EXACT || s.policy.skipped == EL_SKIPPED_PROPAGATE;
  if (waited && depth_ > 0 && (wants_ == Wants::block || wants_ == Wants::fill))
    for (size_t i = 0; i < positions_.size(); i++)
      s.waiting[depth_].push(positions_[i], input_.data() + i * s.width, s.width);
  want(Wants::nothing, depth_, row_);
}

}  // namespace edgeloop::decode
