// Tokens of each of many sequences in one call, and pieces of prompts beside them: their rows ride in the same passes, and
// each goes as deep as its own rule says. One that has left waits while others loop; then all are read out together, so that the head is read once.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder.h"

namespace edgeloop::decode {

class Batch {
 public:
  explicit Batch(el_session& session) : passes_(session, file::MAX_DEPTHS) {}

  // Runs every turn: of different sequences of the session. What goes wrong is said in the turns that it is about; where
  // several ran together each is run again by itself, since it cannot be told. Then more tokens of all, as far as they may
  // and nothing goes wrong. Throws EL_STOPPED.
  void run(el_turn* turns, uint32_t count);
  // Calls of the block so far, and rows in them.
  uint64_t calls() const { return passes_.counts.block_calls; }
  uint64_t rows() const { return passes_.counts.rows; }

 private:
  struct Rider {
    el_turn* turn;
    Decoder* decoder;
    Token token;
    std::vector<float> logits;  // where the host chooses
    bool done;
  };
  void run_once(el_turn* turns, uint32_t count);
  bool run_again();  // false: something went wrong
  void run_together(const std::vector<Rider*>& riders);
  void advance();
  void read_out(const std::vector<Rider*>& riders);
  void finish(Rider& rider, const float* logits);  // null: none are wanted
  static void check(const Rider& rider);

  Passes passes_;
  std::vector<Rider> riders_;  // kept for their memory
  std::vector<Rider*> together_, wanted_;
  std::vector<Token*> going_;
};

}  // namespace edgeloop::decode

struct el_batch {
  explicit el_batch(el_session& session) : batch(session), session(session) {}
  edgeloop::decode::Batch batch;
  el_session& session;
};
