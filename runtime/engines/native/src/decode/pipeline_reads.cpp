// Which tokens in flight are read out after a pass, and what becomes of what was fed behind them.
#include "pipeline.h"

namespace edgeloop::decode {

void Pipeline::pick_reads() {
  const bool epilogue_kv = sequence_.policy.epilogue_kv;
  reads_.clear(), read_.clear();
  bool before = true;  // are all tokens before final with this pass?
  std::vector<uint8_t>& wanted = wanted_;
  wanted.assign(flight_.size(), 0);
  for (size_t i = 0; i < flight_.size(); i++) {
    const Token& token = flight_[i]->token;
    // Older tokens that come along have been final for long: the layers after the loop see them anew, which is not for a
    // draft to do.
    const bool older = i && token.positions().size() > 1;
    const bool own = token.wants_logits() && (!epilogue_kv || (before && !older));
    wanted[i] = own;
    load_.reads += own;
    before = before && (own || token.done());
  }
  for (size_t i = 0; i < flight_.size(); i++) {
    const Token& token = flight_[i]->token;
    if (wanted[i] || token.done() || token.wants_logits() || !token.ran()) continue;
    if (!(i + 1 == flight_.size() ? wants_draft(i) : wants_judge(i))) continue;
    wanted[i] = 1;
    load_.reads++;
    counts.reads++;
  }
  size_t last = flight_.size();
  while (last && !wanted[last - 1]) last--;
  for (size_t i = 0; i < last; i++) {
    Flying& flying = *flight_[i];
    // The epilogue's layers see the tokens before: those that they have not seen go along.
    if (!wanted[i] && (!epilogue_kv || flying.layers)) continue;
    if (wanted[i]) read_.push_back(i);
    const Token& token = flying.token;
    if (token.wants_logits() && wanted[i])
      reads_.push_back(read_of(token, true));
    else
      reads_.push_back({&sequence_, token.position(), token.own_position(), token.state(), 1, wanted[i] != 0});
    flying.layers = true;
  }
}

bool Pipeline::wants_draft(size_t number) {
  Flying& newest = *flight_[number];
  const Token& token = newest.token;
  if (!may_feed(token.position() + 1)) return false;
  if (options.kind == DraftOptions::ALWAYS) return token.ran() == options.depth + 1;
  const Lookup::Found& place = place_behind(newest);
  const double other = place.token < 0 ? 0 : known().lookup[place.kind].value();
  return drafts_.reads(load_, token.ran(), chain(number), other, known());
}

bool Pipeline::wants_judge(size_t number) const {
  const Token& token = flight_[number]->token;
  if (options.kind == DraftOptions::ALWAYS) return options.judges && token.ran() > options.depth + 1;
  const uint32_t behind = uint32_t(flight_.size() - number - 1);
  return drafts_.judges(load_, token.ran(), chain(number), flight_[number + 1]->odds, behind, known());
}

void Pipeline::take_reads() {
  for (size_t i = 0; i < read_.size() && read_[i] < flight_.size(); i++) {
    const size_t number = read_[i];
    Flying& flying = *flight_[number];
    const float* logits = passes_.logits(i);
    const uint32_t position = flying.token.position() + 1;
    const bool final = flying.token.wants_logits();
    double difference = 0;
    int64_t token = sampler_.choose(logits, passes_.output(), position, final ? nullptr : &difference);
    if (final) {
      flying.token.take(passes_.session.caches, nullptr);
      flying.chosen = token;
      if (number) flying.logits.assign(logits, logits + passes_.output());
      flying.follows = token, flying.follows_odds = 1;
    } else if (token >= 0) {
      const uint32_t depth = flying.token.ran() - 1, margin = Acceptance::margin(difference);
      if (position < truth.size()) token = wrong[position] ? (truth[position] + 1) % passes_.output() : truth[position];
      flying.guesses.push_back({depth, margin, token});
      flying.follows = token;
      flying.follows_odds = known().model[depth * Acceptance::MARGINS + margin].value();
    }
    if (token >= 0) compare(number);
  }
}

// What is known now of the token behind `number`: it stays, or it is refuted.
void Pipeline::compare(size_t number) {
  if (number + 1 >= flight_.size()) return;
  const Flying& flying = *flight_[number];
  Flying& behind = *flight_[number + 1];
  const double odds = flying.follows_odds;
  if (behind.token.id() == flying.follows)
    behind.odds = together(behind.odds, odds);
  else if (odds > behind.odds || options.kind == DraftOptions::ALWAYS)
    refute_from(number + 1);
  else
    behind.odds = against(behind.odds, odds);
}

}  // namespace edgeloop::decode
