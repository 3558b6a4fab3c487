// A text section, opened: its tables, checked as far as format.h says, and what is done with them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../error.h"
#include "../model.h"
#include "../platform.h"
#include "format.h"
#include "utf8.h"

namespace edgeloop::text {

// Part of a text on its way to tokens: bytes of a buffer; or a token that was found in it.
struct Span {
  size_t start, bytes;
  int64_t token;  // or −1
  bool first;     // it begins where the text begins
};

// A text on its way.
struct Work {
  std::string text;
  std::vector<Span> spans;
  Bytes of(const Span& span) const { return Bytes(text).substr(span.start, span.bytes); }
};

class Text {
 public:
  // The section of `model`, which outlives it; throws an Error.
  explicit Text(const Model& model);
  // The same of bytes in memory that begin at a multiple of 8. `whole` false: the checksum is not looked at.
  Text(const uint8_t* bytes, size_t size, bool whole);

  // Appends the tokens of a text, which is UTF-8.
  void encode(Bytes text, bool add_special, std::vector<uint32_t>& ids) const;
  // Appends the text of tokens.
  void decode(const int64_t* ids, size_t count, bool skip_special, std::string& text) const;

  // ---- single tokens --------------------------------------------------------------------------------------------
  bool known(int64_t id) const;
  bool special(int64_t id) const;
  // What a decoder gets.
  Bytes written(int64_t id) const;
  bool decodes(file::Kind kind) const;  // there is such a decoder

  // ---- tables ---------------------------------------------------------------------------------------------------
  template <class T>
  View<T> table(file::Tag tag) const;
  const file::Rules& rules() const { return *rules_; }
  Bytes string(file::String found) const;
  Bytes piece(uint32_t id) const;
  bool flag(file::Flag flag) const { return rules_->flags & flag; }

  // The sets that a character is in.
  uint64_t sets(uint32_t character) const { return character < 128 ? ascii_[character] : sets_beyond(character); }
  bool in(uint32_t set, uint32_t character) const { return sets(character) >> set & 1; }

  // The model's token of these bytes, or NONE; `hash` of all of them, not mixed.
  uint32_t find(Bytes bytes, uint32_t hash) const;
  uint32_t find(Bytes bytes) const;

 private:
  void check(bool whole);
  void check_rules();
  void check_step(const file::Step& step) const;
  void check_code() const;
  const file::Record* record(uint32_t tag) const;
  uint64_t sets_beyond(uint32_t character) const;
  const file::Added* added(int64_t id) const;

  // Longest text of ADDED that begins at `at`, or null; `normalized`: of those that stand in normalized text.
  const file::Added* added_at(Bytes text, size_t at, bool normalized) const;
  void find_added(const Work& from, bool normalized, std::vector<Span>& to) const;
  void normalize(Work& work) const;
  void normalize(const file::Step& step, std::string& text, bool& first) const;
  void split(const file::Step& step, Work& work) const;
  void compose(const file::Step& step, std::string& text) const;
  void map_clusters(const file::Step& step, std::string& text) const;
  void replace(const file::Step& step, std::string& text, bool& first) const;
  void tokens(Bytes bytes, std::vector<uint32_t>& ids) const;

  const uint8_t* bytes_;
  size_t size_;
  const file::Rules* rules_ = nullptr;
  View<file::Step> steps_;
  View<char> strings_, pieces_;
  View<uint32_t> piece_ends_, slots_, byte_tokens_, code_, added_slots_, before_, after_;
  View<file::Merge> merges_;
  View<double> scores_;
  View<uint16_t> blocks_;
  View<uint8_t> classes_;
  View<uint64_t> masks_;
  View<file::Added> added_;
  View<file::Mapped> maps_, reorder_;
  View<file::Composed> compose_;
  bool any_normalized_ = false, any_plain_ = false;
  bool added_begins_[256] = {};
  uint64_t ascii_[128] = {};

};

// The byte that a token written <0x0A> stands for, or −1.
int byte_of(Bytes token);

// Matches of a pattern in a text, from left to right. Throws EL_USAGE for one that takes more steps than texts should.
class Matches {
 public:
  Matches(const Text& text, uint32_t pattern, Bytes inside)
      : text_(text), code_(text.table<uint32_t>(file::CODE)), pattern_(pattern), inside_(inside),
        left_(65536 + 512 * uint64_t(inside.size())) {}
  // Whether there is one more: bytes `start` … `end`.
  bool next();
  size_t start = 0, end = 0;

 private:
  struct Frame {
    uint32_t pc;
    size_t least, at;
  };
  bool match(uint32_t pc, size_t& at);

  const Text& text_;
  View<uint32_t> code_;
  uint32_t pattern_;
  Bytes inside_;
  uint64_t left_;
  uint32_t depth_ = 0;
  std::vector<Frame> stack_;
};

template <class T>
View<T> Text::table(file::Tag tag) const {
  const file::Record* found = record(tag);
  if (!found) return {};
  if (found->bytes % sizeof(T)) fail(EL_FORMAT, "table %u of the text section has half a record", uint32_t(tag));
  return {reinterpret_cast<const T*>(bytes_ + found->offset), size_t(found->bytes / sizeof(T))};
}

}  // namespace edgeloop::text

struct el_text {
  explicit el_text(const edgeloop::Model& model) : text(model) {}
  // Of a file that is a section alone; throws an Error.
  explicit el_text(const char* path) : file(path), text(file.mapped.bytes, file.mapped.size, true) {}

  struct File {
    File() = default;
    explicit File(const char* path) : mapped(edgeloop::map_file(path)) {}
    ~File() { edgeloop::unmap_file(mapped); }
    File(const File&) = delete;
    const edgeloop::MappedFile mapped;
  } file;
  edgeloop::text::Text text;
};
