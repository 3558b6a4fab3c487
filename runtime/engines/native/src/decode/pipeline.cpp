#include "pipeline.h"

#include <algorithm>
#include <chrono>

namespace edgeloop::decode {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point& begin) {
  const Clock::time_point now = Clock::now();
  const double spent = std::chrono::duration<double, std::nano>(now - begin).count();
  begin = now;
  return spent;
}

}  // namespace

Pipeline::Pipeline(Passes& passes, Sequence& sequence, Sampler& sampler, Drafts& drafts)
    : passes_(passes), sequence_(sequence), sampler_(sampler), drafts_(drafts) {
  const Caches& caches = passes.session.caches;
  for (uint32_t stage = 0; stage < file::STAGES_WITH_CACHES; stage++) alone_ |= caches.kept_floats(stage) > 0;
  const Policy& policy = sequence.policy;
  // The row of a token is not known before the one in front has run; or a wrong draft would take one along that had left.
  in_turn_ = policy.gaps || (policy.skipped == EL_SKIPPED_EXACT && policy.epilogue_kv);
  // Every depth writes a token's row in the one slot of them all.
  alone_ |= policy.shared && !caches.model().header().shares_kv && policy.rule.depths > 1;
}

void Pipeline::begin(const int64_t* ids, size_t count) {
  cancel();
  size_t same = 0;
  while (same < count && same < text_.size() && text_.at(same) == ids[same]) same++;
  text_.truncate(same);
  for (; same < count; same++) text_.append(ids[same]);
  guesses_.clear();
  looked_up_ = {};
  drafts_.begin();
}

const float* Pipeline::step(int64_t id) {
  const uint32_t position = sequence_.cached;
  learn(id);
  try {
    if (!flight_.empty() && flight_.front()->token.id() != id) refute_from(0);
    if (flight_.empty()) {
      feed(id, 1, FINAL);
      Token* const token = &flight_.front()->token;
      while (token->wants() != Wants::prologue) passes_.advance({token});  // older states that had waited for too long
    }
    Flying& first = *flight_.front();
    if (first.source != FINAL) counts.fed[first.source]++, counts.right[first.source]++;
    first.odds = 1, first.source = FINAL;
    while (!first.token.done()) pass();
  } catch (...) {
    cancel();
    throw;
  }
  std::unique_ptr<Flying> first = std::move(flight_.front());
  flight_.pop_front();
  sequence_.finished(position + 1);
  ran_ = first->token.ran(), chosen_ = first->chosen;
  std::swap(logits_, first->logits);
  const bool kept = !logits_.empty();
  std::swap(guesses_, first->guesses);
  spare_.push_back(std::move(first));
  counts.tokens++;
  uint32_t ahead = 0;
  for (const auto& flying : flight_) ahead += flying->token.ran();
  drafts_.finished(ran_, ahead);
  return kept ? logits_.data() : passes_.logits(0);
}

Acceptance& Pipeline::known() const {
  return sampler_.sampling().temperature > 0 ? drafts_.sampled : drafts_.greedy;
}

// The token `id` is final: which guesses at it were right?
void Pipeline::learn(int64_t id) {
  Acceptance& acceptance = known();
  for (const Guess& guess : guesses_) acceptance.saw(guess.depth, guess.margin, guess.token == id);
  if (looked_up_.token >= 0) acceptance.lookup[looked_up_.kind].saw(looked_up_.token == id);
  text_.truncate(std::min<size_t>(text_.size(), sequence_.cached));  // a text may end with this token
  text_.append(id);
  looked_up_ = text_.next(nullptr, 0);
}

void Pipeline::feed(int64_t id, double odds, Source source) {
  std::unique_ptr<Flying> fed;
  if (spare_.empty()) {
    fed = std::make_unique<Flying>();
  } else {
    fed = std::move(spare_.back());
    spare_.pop_back();
  }
  fed->odds = odds, fed->source = source;
  fed->layers = fed->looked = false;
  fed->follows = -1, fed->chosen = NO_TOKEN;
  fed->guesses.clear(), fed->logits.clear();
  const uint32_t position = sequence_.cached + uint32_t(flight_.size());
  fed->token.start(sequence_, id, position);
  flight_.push_back(std::move(fed));
}

double Pipeline::chain(size_t number) const {
  double odds = 1;
  for (size_t i = 1; i <= number; i++) odds *= flight_[i]->odds;
  return odds;
}

// What the text says comes behind the newest token: asked once, as what is before a token in flight stays.
const Lookup::Found& Pipeline::place_behind(Flying& newest) {
  if (!newest.looked) {
    behind_.clear();
    for (size_t i = 1; i < flight_.size(); i++) behind_.push_back(flight_[i]->token.id());
    newest.place = behind_.empty() ? looked_up_ : text_.next(behind_.data(), behind_.size());
    newest.looked = true;
  }
  return newest.place;
}

// What is most likely to come behind the newest token, as far as is known without reading anything out.
Pipeline::Draft Pipeline::next_draft() {
  Flying& newest = *flight_.back();
  const bool always = options.kind == DraftOptions::ALWAYS;
  Draft found;
  if (newest.follows >= 0) found = {newest.follows, newest.follows_odds, PREDICTED};
  if (always && (found.token >= 0 || looked_ >= options.lookups)) return found;
  const Lookup::Found& place = place_behind(newest);
  if (place.token < 0) return found;
  const double odds = known().lookup[place.kind].value();
  if (found.token < 0) return {place.token, odds, LOOKED_UP};
  if (found.token == place.token) return {found.token, together(found.odds, odds), PREDICTED};
  if (odds > found.odds) return {place.token, against(odds, found.odds), LOOKED_UP};
  return {found.token, against(found.odds, odds), PREDICTED};
}

bool Pipeline::may_feed(uint32_t position) const {
  const Caches& caches = passes_.session.caches;
  if (alone_ || options.kind == DraftOptions::NEVER || position >= caches.capacity()) return false;
  if (flight_.size() >= Drafts::MOST_IN_FLIGHT) return false;
  if (sequence_.policy.rule.exits_early() && sequence_.overdue()) return false;  // they run when nothing is in flight
  if (!caches.can_truncate(position + 1, sequence_.cached)) return false;
  for (uint32_t depth = 0; sequence_.policy.gaps && depth < sequence_.filled.size(); depth++) {
    const uint32_t most = sequence_.filled[depth] + uint32_t(flight_.size()) + 1;
    if (!caches.can_truncate(most, sequence_.rows_before(depth, sequence_.cached))) return false;
  }
  return true;
}

void Pipeline::feed_drafts() {
  looked_ = 0;
  while (may_feed(sequence_.cached + uint32_t(flight_.size()))) {
    const Flying& newest = *flight_.back();
    const bool fresh = newest.token.wants() == Wants::prologue;
    if (fresh && in_turn_) return;
    const Draft draft = next_draft();
    if (draft.token < 0) return;
    const double odds = chain(flight_.size() - 1) * draft.odds;
    if (options.kind != DraftOptions::ALWAYS && !drafts_.feeds(load_, newest.token.ran(), odds, known())) return;
    looked_ += draft.source == LOOKED_UP;
    feed(draft.token, draft.odds, draft.source);
    load_.rows++, load_.fresh++;
  }
}

// One depth for every token in flight, and what is to be read out of them.
void Pipeline::pass() {
  load_ = {};
  for (const auto& flying : flight_) {
    load_.rows += !flying->token.done() && !flying->token.wants_logits();
    load_.fresh += flying->token.wants() == Wants::prologue;
  }
  feed_drafts();
  tokens_.clear();
  for (const auto& flying : flight_) tokens_.push_back(&flying->token);
  Clock::time_point begin = Clock::now();
  passes_.prologues(tokens_);
  const double prologue = since(begin);
  passes_.fills(tokens_);
  passes_.blocks(tokens_);
  const double block = since(begin);
  pick_reads();
  passes_.read(reads_);
  take_reads();
  const double read = since(begin);
  counts.passes++;
  drafts_.passed(load_);
  drafts_.took(load_, prologue, block, read);
}

void Pipeline::cancel() {
  refute_from(0, false);
}

void Pipeline::refute_from(size_t first, bool counted) {
  if (first >= flight_.size()) return;
  const uint32_t position = flight_[first]->token.position();
  while (flight_.size() > first) {
    Flying& newest = *flight_.back();
    newest.token.cancel();
    if (counted && newest.source != FINAL) counts.fed[newest.source]++;
    spare_.push_back(std::move(flight_.back()));
    flight_.pop_back();
  }
  sequence_.truncate(position);
}

}  // namespace edgeloop::decode
