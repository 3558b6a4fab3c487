// A record of the file's text section, read number by number: it is not trusted.
#pragma once

#include <cstring>
#include <string>

#include "../error.h"
#include "../model.h"
#include "../text/format.h"

namespace edgeloop::context {

// Tables of the text section beside the tokenizer's (text/format.h): what an app's host needs of a model.
// runtime/engines/native/records.py writes them.
// The table of that tag; no bytes where there is none. Throws EL_FORMAT for a section that is damaged.
View<uint8_t> table_of(const Model& model, text::file::Tag tag);

class Record {
 public:
  Record(View<uint8_t> bytes, const char* name) : at_(bytes.data), left_(bytes.count), name_(name) {}

  uint32_t number() {
    uint32_t x;
    std::memcpy(&x, take(4), 4);
    return x;
  }
  // At most `most`.
  uint32_t number(uint32_t most) {
    const uint32_t x = number();
    if (x > most) wrong();
    return x;
  }
  void floats(float* to, size_t count) {
    const uint8_t* from = take(count * 4);
    if (count) std::memcpy(to, from, count * 4);
  }
  std::string text() {
    const uint32_t bytes = number(uint32_t(left_));
    return std::string(reinterpret_cast<const char*>(take(bytes)), bytes);
  }
  size_t left() const { return left_; }
  void finish() const {
    if (left_) wrong();
  }
  [[noreturn]] void wrong() const { fail(EL_FORMAT, "the record of %s is damaged; export the model again", name_); }

 private:
  const uint8_t* take(size_t bytes) {
    if (bytes > left_) wrong();
    const uint8_t* found = at_;
    at_ += bytes, left_ -= bytes;
    return found;
  }
  const uint8_t* at_;
  size_t left_;
  const char* name_;
};

}  // namespace edgeloop::context
