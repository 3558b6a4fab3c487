#include "batch.h"

#include <algorithm>
#include <cstdio>

#include "../error.h"

namespace edgeloop::decode {

namespace {

void told(el_turn& turn, el_code code, const char* text) {
  turn.code = code;
  turn.token = NO_TOKEN;
  if (turn.error) std::snprintf(turn.error, EL_ERROR_SIZE, "%s", text);
}

bool loops(const Token* token) {
  return token->wants() == Wants::prologue || token->wants() == Wants::fill || token->wants() == Wants::block;
}

// Whether a turn may go on behind the token that it has chosen.
bool goes_on(const el_turn& turn) {
  return turn.code == EL_OK && !turn.text && turn.chooses == EL_CHOOSES_DECODER && turn.made < turn.most &&
         turn.token != NO_TOKEN && std::find(turn.ends, turn.ends + turn.ends_count, turn.token) == turn.ends + turn.ends_count;
}

}  // namespace

void Batch::run(el_turn* turns, uint32_t count) {
  run_once(turns, count);
  while (std::all_of(turns, turns + count, goes_on) && run_again()) {
  }
}

bool Batch::run_again() {
  try {
    for (Rider* rider : together_) {
      rider->done = false;
      check(*rider);
    }
    run_together(together_);
  } catch (const Error& error) {
    if (error.code == EL_STOPPED) throw;
    return false;
  }
  return true;
}

void Batch::run_once(el_turn* turns, uint32_t count) {
  if (riders_.size() < count) riders_.resize(count);
  together_.clear();
  for (uint32_t i = 0; i < count; i++) {
    Rider& rider = riders_[i];
    rider.turn = &turns[i];
    rider.decoder = &turns[i].decoder->decoder;
    rider.done = false;
    rider.decoder->settle();
    rider.decoder->logits = nullptr;  // those of the token before
    turns[i].code = EL_OK;
    turns[i].logits = nullptr;
    turns[i].made = 0;
    try {
      check(rider);
      together_.push_back(&rider);
    } catch (const Error& error) {
      told(turns[i], error.code, error.text);
    }
  }
  if (together_.empty()) return;
  try {
    run_together(together_);
  } catch (const Error& error) {
    if (error.code == EL_STOPPED) throw;
    if (together_.size() == 1) return told(*together_.front()->turn, error.code, error.text);
    for (Rider* rider : together_) {
      if (rider->done) continue;
      try {
        run_together({rider});
      } catch (const Error& own) {
        if (own.code == EL_STOPPED) throw;
        told(*rider->turn, own.code, own.text);
      }
    }
  }
}

void Batch::run_together(const std::vector<Rider*>& riders) {
  going_.clear();
  for (Rider* rider : riders) {
    const el_turn& turn = *rider->turn;
    Sequence& sequence = rider->decoder->sequence;
    if (turn.text) {
      rider->token.start_text(sequence, turn.text, turn.text_count, turn.chooses != EL_CHOOSES_NOBODY);
    } else {
      rider->token.start(sequence, turn.token, sequence.cached);
    }
    going_.push_back(&rider->token);
  }
  try {
    while (!going_.empty()) {
      while (std::any_of(going_.begin(), going_.end(), loops)) advance();
      read_out(riders);
      for (Rider* rider : riders)
        if (!rider->done && rider->token.done()) finish(*rider, nullptr);
      going_.erase(std::remove_if(going_.begin(), going_.end(), [](const Token* t) { return t->done(); }), going_.end());
    }
  } catch (...) {
    for (Rider* rider : riders) {
      if (rider->done) continue;
      rider->token.cancel();
      rider->decoder->sequence.truncate(rider->token.position());
    }
    throw;
  }
}

void Batch::advance() {
  passes_.prologues(going_);
  passes_.fills(going_);
  passes_.blocks(going_);
}

void Batch::read_out(const std::vector<Rider*>& riders) {
  wanted_.clear();
  for (Rider* rider : riders)
    if (!rider->done && rider->token.wants_logits()) wanted_.push_back(rider);
  passes_.epilogues(going_);
  for (size_t i = 0; i < wanted_.size(); i++) finish(*wanted_[i], passes_.logits(i));
}

void Batch::finish(Rider& rider, const float* logits) {
  el_turn& turn = *rider.turn;
  Sequence& sequence = rider.decoder->sequence;
  sequence.finished(rider.token.position() + uint32_t(rider.token.ids().size()));
  rider.done = true;
  turn.depths = rider.token.ran();
  turn.token = NO_TOKEN;
  const uint32_t output = passes_.output(), number = turn.made++;
  if (logits && turn.chooses == EL_CHOOSES_DECODER)
    turn.token = rider.decoder->sampler.choose(logits, output, sequence.cached);
  if (turn.most > 1) turn.tokens[number] = turn.token, turn.ran[number] = turn.depths;
  if (!logits || turn.token != NO_TOKEN) return;
  rider.logits.assign(logits, logits + output);
  turn.logits = rider.logits.data();
}

// What can be said of a turn before anything is run.
void Batch::check(const Rider& rider) {
  const el_turn& turn = *rider.turn;
  if (turn.chooses > EL_CHOOSES_NOBODY) fail(EL_USAGE, "there is no el_chooses %u", turn.chooses);
  if (!turn.text) return rider.decoder->check(&turn.token, 1);
  if (turn.text_count < 1) fail(EL_USAGE, "a text without tokens");
  rider.decoder->check(turn.text, turn.text_count);
  const Sequence& sequence = rider.decoder->sequence;
  const auto& waiting = sequence.waiting;
  if (sequence.policy.rule.routed()) fail(EL_USAGE, "a text whose tokens a router sends, wanted one token after the other");
  if (std::any_of(waiting.begin(), waiting.end(), [](const Waiting& each) { return !each.empty(); }))
    fail(EL_USAGE, "a text behind tokens of which some wait for deeper depths; run those first");
}

}  // namespace edgeloop::decode
