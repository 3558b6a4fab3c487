// A text or a conversation that goes on: the twin of runtime/context/context.py and of what runtime/session.py does with it,
// for the one sequence of a session. All of it computes while the model's `computing` is held, a token at a time.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "../decode/batch.h"
#include "../edgeloop_context.h"
#include "app.h"

namespace edgeloop::context {

constexpr uint32_t CHUNK = 128;  // tokens of a text that go through together

struct Options {
  uint32_t capacity, kv, drafts, think, answer_room;
  std::string exit, skipped;
  bool has_exit, has_skipped;
};

// A prompt or an answer, as its caller and its callback see it.
struct Given {
  uint32_t max_tokens = 0, flags = 0;
  std::vector<const char*> stops;
  el_on_piece on_piece = nullptr;
  void* user = nullptr;
};

class Context {
 public:
  Context(el_model& model, const el_text* text, const Options& options);
  // One that goes on from `other`.
  explicit Context(Context& other);

  void append(const int64_t* ids, size_t count);
  void append_text(const char* utf8, size_t bytes);
  void say(const Message& message);
  void converse(std::vector<Message> messages);
  void truncate(size_t tokens);
  void again();
  void answer(const Given& given, el_answer& told);
  void save(const char* path);
  void load(const char* path);
  void read_stats(el_context_stats& stats);

  const App& app() const { return *model_.app; }
  const std::vector<int64_t>& ids() const { return ids_; }
  const std::vector<Message>& messages() const { return messages_; }
  el_session& session() const { return *session_; }
  el_sampling sampling;  // of the last answer
  std::vector<uint64_t> exits;  // by depths, tokens of answers

 private:
  friend struct Saved;
  decode::Decoder& decoder() { return decoder_->decoder; }
  uint32_t capacity() const { return session_->caches.capacity(); }
  void check_ids(const int64_t* ids, size_t count) const;
  void check_room(size_t tokens) const;
  std::vector<int64_t> encode(const std::string& text, bool special) const;
  std::vector<int64_t> rendered(const std::vector<Message>& messages) const;
  void replace(const std::vector<int64_t>& ids);
  void extend(const int64_t* ids, size_t count);
  void take_back(size_t tokens);
  bool can_truncate(size_t tokens);
  void reset();
  int64_t prefill(uint32_t& ran, uint32_t& depth);
  void run_text(size_t end, bool chooses, int64_t& chosen);
  int64_t next(int64_t token, uint32_t& depth);

  el_model& model_;
  const el_text* text_;
  Options options_;
  std::unique_ptr<ChosenPolicy> chosen_;
  std::unique_ptr<el_session> session_;
  std::unique_ptr<el_decoder> decoder_;
  std::unique_ptr<decode::Batch> batch_;
  bool prefix_lm_ = false;  // tokens of a prompt see each other

  std::vector<int64_t> ids_;
  std::vector<Message> messages_;  // the first `turns_` are the first `said_` tokens
  size_t turns_ = 0, said_ = 0;
  int64_t answer_ = -1;            // where the last answer begins; −1: something was appended behind it
  size_t end_ = 0;                 // where the last answer ends
  uint32_t prefix_ = 0;            // of the first tokens, those that see each other
  uint32_t forgotten_ = 0;         // messages, since the last answer
  uint64_t generated_ = 0;
};

}  // namespace edgeloop::context

struct el_context {
  template <class... Arguments>
  explicit el_context(Arguments&&... arguments) : context(std::forward<Arguments>(arguments)...) {}
  edgeloop::context::Context context;
};
