// One text of a model: its ids, and a decoder that has run some of them.
#ifndef EDGELOOP_CONVERSATION_H
#define EDGELOOP_CONVERSATION_H

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "edgeloop.h"

namespace edgeloop_jni {

// What went wrong: a code of edgeloop.h and its line.
struct Error {
  int code;
  std::string line;
};

void check(int code, const char* line);  // throws Error unless EL_OK

enum Finish { END = 0, LENGTH = 1, CONTEXT = 2, STOPPED = 3 };

struct Answer {
  uint32_t tokens = 0;
  Finish finish = STOPPED;
  uint64_t prompt_nanoseconds = 0, nanoseconds = 0;
};

class Conversation {
 public:
  // `capacity` 0: the model's. `exit`: "never", "depth:N", "latent:X" or "latent:X,Y" with one for each depth but the last.
  Conversation(el_model* model, uint32_t capacity, uint32_t kv, const std::string& exit);
  ~Conversation();
  Conversation(const Conversation&) = delete;
  Conversation& operator=(const Conversation&) = delete;

  void sample(const el_sampling& sampling);
  void append(const std::vector<int64_t>& ids);
  void seek(size_t tokens);
  size_t length() const { return ids_.size(); }
  el_stats stats() const;
  void begin() { stopped_ = false; }
  void stop();
  // `on_token`: a token, the depths that the one before it ran, nanoseconds; false: no more.
  Answer answer(uint32_t most, const std::vector<int64_t>& ends,
      const std::function<bool(int64_t, uint32_t, uint64_t)>& on_token);

 private:
  // Runs what has not been run, and chooses: false where it was stopped.
  bool next(int64_t* token, uint32_t* depth);

  el_session* session_ = nullptr;
  el_decoder* decoder_ = nullptr;
  el_batch* batch_ = nullptr;
  std::vector<int64_t> ids_;
  size_t run_ = 0;  // of ids_
  size_t capacity_ = 0;
  int64_t vocabulary_ = 0;
  std::atomic<bool> stopped_{false};
};

}  // namespace edgeloop_jni

#endif
