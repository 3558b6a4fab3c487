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

}  // namespace

void Batch::run(el_turn* turns, uint32_t count) {
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
    try {
      rider.decoder->check(turns[i].token);
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
    rider->token.start(rider->decoder->sequence, rider->turn->token, rider->decoder->sequence.cached);
    going_.push_back(&rider->token);
  }
  try {
    while (!going_.empty()) {
      while (std::any_of(going_.begin(), going_.end(), loops)) advance();
      read_out(riders);
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
  const uint32_t output = passes_.output();
  for (size_t i = 0; i < wanted_.size(); i++) {
    Rider& rider = *wanted_[i];
    const float* logits = passes_.logits(i);
    rider.decoder->sequence.finished(rider.token.position() + 1);
    rider.done = true;
    rider.turn->depths = rider.token.ran();
    rider.turn->token = NO_TOKEN;
    if (rider.turn->chooses)
      rider.turn->token = rider.decoder->sampler.choose(logits, output, rider.decoder->sequence.cached);
    if (rider.turn->token != NO_TOKEN) continue;
    rider.logits.assign(logits, logits + output);
    rider.turn->logits = rider.logits.data();
  }
}

}  // namespace edgeloop::decode
