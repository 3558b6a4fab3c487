// Whole tokens without the host: a sequence of a session, a mode, a sampler.
//
// How a driver is written. A `Token` is one token on its way: it says what it wants (`Token::wants`), and `Passes` runs
// what many of them want in one call a stage. So a step is three lines, whoever drives:
//
//   one sequence     token.start(sequence, id, sequence.cached);
//   (Decoder::run)   while (!token.done()) passes.advance({&token});
//                    sequence.finished(token.position() + 1);
//
//   many sequences   start a token of each, `advance` all of them until none is left. Tokens of one depth and of others
//                    ride in the same call: that of those that left early goes on to the epilogue while others loop.
//                    All decoders are of one session; `finished` for each.
//
//   with drafts      start token t; after `prologues`, `fills`, `blocks` of all in flight, `read` the `read_of` of those
//                    whose prediction is wanted (`wanted`) and of those that want their own logits, the oldest first;
//                    where the policy has `epilogue_kv`, of all in flight up to the last one of these, as its layers see the
//                    tokens before. Then `take(caches, nullptr)` of those that `wants_logits()`, once all before them
//                    are done, and `start` the next draft. A refuted draft: `cancel` it and all behind it, newest
//                    first, then `sequence.truncate(its position)`. Nothing may be in flight where `overdue()`, and
//                    a row that moves a window cannot be taken back (Caches::can_truncate).
//
// Everything that computes is called while the model's `computing` is held (api.cpp). What is thrown leaves tokens as they
// were: `cancel` and `truncate` take them back, and the sequence is as before. `el_stop` throws between passes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "passes.h"
#include "pipeline.h"
#include "sampler.h"

namespace edgeloop::decode {

class Decoder {
 public:
  // `number`: of the session's sequences. Throws an Error with EL_USAGE for what the session has not.
  Decoder(el_session& session, uint32_t number, const el_policy& policy);
  Decoder(const Decoder&) = delete;

  // Throws an Error with EL_USAGE unless `count` tokens `ids` can be run.
  void check(const int64_t* ids, uint32_t count) const;
  // Runs the token `id` at `sequence.cached` → its logits, valid until the next call; `ran`: depths that it ran.
  const float* run(int64_t id);
  // The next token, of the logits that `run` gave last; or NO_TOKEN.
  int64_t choose() { return pipeline ? pipeline->chosen() : sampler.choose(logits, passes.output(), sequence.cached); }
  // Drafts from now on, or none; what calls cost is measured the first time.
  void draft(const DraftOptions& options);
  // What waits for deeper depths runs, so that a text may follow.
  void catch_up();
  // Before anything but `run` looks at the sequence: drafts in flight are taken back.
  void settle() {
    if (pipeline) pipeline->cancel();
  }

  const Policy policy;
  Sequence sequence;
  Passes passes;
  Sampler sampler;
  const float* logits = nullptr;  // of the last token, null before the first
  uint32_t ran = 0;
  std::unique_ptr<Pipeline> pipeline;  // null: no drafts

 private:
  void run_alone(int64_t id);
  void drive();

  Token token_;
  std::vector<Token*> tokens_{&token_};
};

}  // namespace edgeloop::decode

struct el_decoder {
  el_decoder(el_session& session, uint32_t number, const el_policy& policy) : decoder(session, number, policy) {}
  edgeloop::decode::Decoder decoder;
};
