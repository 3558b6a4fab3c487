// Text for a host of another engine: the tokenizer and turns of a text.lanes file, through libedgeloop's C interface.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "edgeloop.h"

namespace edgeloop::pte {

using Message = std::pair<std::string, std::string>;  // role, content

class Text {
 public:
  // Throws a Problem, as everything here does where the library refuses.
  explicit Text(const std::string& path);
  ~Text() { el_text_close(text_); }
  Text(const Text&) = delete;

  // `special`: with the tokens that stand around a text.
  std::vector<int64_t> encode(const std::string& text, bool special) const;
  // A conversation as the chat template writes it, with the opening of the answer.
  std::string render(const std::vector<Message>& messages) const;
  const std::vector<int64_t>& ends() const { return ends_; }
  const el_text* get() const { return text_; }

 private:
  el_text* text_ = nullptr;
  std::vector<int64_t> ends_;
};

// An answer that comes token by token, as whole characters, up to the first of its stop strings.
class Writer {
 public:
  Writer(const Text& text, const std::vector<int64_t>& prompt, const std::vector<std::string>& stops);
  ~Writer() { el_writer_free(writer_); }
  Writer(const Writer&) = delete;
  // What `token` makes certain.
  std::string push(int64_t token);
  // What was held back.
  std::string end();
  bool stopped() const { return stopped_; }

 private:
  el_writer* writer_ = nullptr;
  bool stopped_ = false;
};

}  // namespace edgeloop::pte
