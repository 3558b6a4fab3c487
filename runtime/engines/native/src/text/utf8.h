// Characters of text that is known to be UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace edgeloop::text {

using Bytes = std::string_view;

inline size_t width(uint8_t first) { return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4; }

// The character that begins at `at`, which moves behind it.
inline uint32_t next_character(Bytes text, size_t& at) {
  const auto byte = [&](size_t i) { return uint32_t(uint8_t(text[i])); };
  const uint32_t first = byte(at);
  if (first < 0x80) return at++, first;
  const size_t n = width(uint8_t(first));
  if (n > text.size() - at) return at = text.size(), 0xfffd;  // of a file's strings only
  uint32_t found = first & (0xffu >> (n + 1));
  for (size_t i = 1; i < n; i++) found = found << 6 | (byte(at + i) & 0x3f);
  at += n;
  return found < 0x110000 ? found : 0xfffd;
}

// Where the character that ends at `at`, above 0, begins.
inline size_t before(Bytes text, size_t at) {
  for (--at; at && (uint8_t(text[at]) & 0xc0) == 0x80;) at--;
  return at;
}

void append(std::string& text, uint32_t character);

// How many bytes from `at` on are a whole character; 0: none is, and `broken` of them are to be taken together for U+FFFD,
// or may become one (`open`).
size_t whole(Bytes text, size_t at, size_t& broken, bool& open);

// `bytes`, with U+FFFD for what is no character.
void append_repaired(std::string& text, Bytes bytes);

}  // namespace edgeloop::text
