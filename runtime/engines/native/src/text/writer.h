// An answer as it comes: tokens become whole characters, up to a stop string. The rules, and the reasons for them, are those
// of runtime/text/stream.py and runtime/text/stops.py, which this does the same as.
#pragma once

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "text.h"

namespace edgeloop::text {

// The text of a stream of tokens.
class Stream {
 public:
  explicit Stream(const Text& text) : text_(text) {}
  void begin(const int64_t* prompt, size_t count);
  // Appends what `token` completes.
  void push(int64_t token, std::string& out);
  // Appends what was held back.
  void flush(std::string& out);

  bool silent(int64_t token) const { return !text_.known(token) || text_.special(token); }
  // What the token writes behind other text.
  std::string piece(int64_t token);

 private:
  using Ids = std::vector<int64_t>;
  int byte(int64_t token) const { return fallback_ ? byte_of(text_.written(token)) : -1; }
  std::string decoded(const Ids& ids, bool skip_special = true) const;
  void release(const Ids& then, std::string& out);
  void grow(const Ids& ids, std::string& out);
  void send(size_t end, std::string& out);
  void fresh(Bytes text, std::string& out);
  void move();

  const Text& text_;
  const bool fallback_ = text_.decodes(file::FALLBACK);
  const bool raw_ = text_.flag(file::RAW_BYTES) && !fallback_;
  Ids ids_;            // the window
  std::string shown_;  // its text, the end held back included
  size_t sent_ = 0;    // bytes of it that were returned
  Ids run_;            // tokens that are bytes and are held back; not in the window
  std::string data_;   // and their bytes
  bool long_ = false, broken_ = false;  // some of the open run was shown as text; as broken bytes
  std::string known_;  // the prompt's end that may come out otherwise, but need not
  Ids before_;         // tokens to put another one behind, and their text
  std::string before_text_;
  bool asked_ = false;
};

// Finds stop strings in a stream of bytes (Knuth, Morris and Pratt).
class Stops {
 public:
  void add(Bytes stop);
  // Whether one ends in `data`; `begins` is then where the earliest begins.
  bool push(Bytes data);
  size_t longest = 0;  // bytes
  size_t begins = 0;   // how many bytes before the end a stop string begins, or what may become one

 private:
  struct Stop {
    std::string text;
    std::vector<uint32_t> failures;
    size_t state;
  };
  std::vector<Stop> stops_;
};

class Writer {
 public:
  Writer(const Text& text, const int64_t* prompt, size_t prompt_count, const char* const* stops, uint32_t stops_count);
  void push(int64_t token);
  void end();
  std::string out;  // of the last call
  bool stopped = false;

 private:
  void last(size_t begins);

  Stream stream_;
  Stops stops_;
  std::deque<std::pair<int64_t, std::string>> held_;
  size_t bytes_ = 0;  // of the tokens held back
};

}  // namespace edgeloop::text
