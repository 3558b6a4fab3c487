#include "utf8.h"

namespace edgeloop::text {

void append(std::string& text, uint32_t c) {
  if (c < 0x80) return text.push_back(char(c));
  if (c < 0x800) {
    text.push_back(char(0xc0 | c >> 6));
  } else {
    if (c < 0x10000) {
      text.push_back(char(0xe0 | c >> 12));
    } else {
      text.push_back(char(0xf0 | c >> 18));
      text.push_back(char(0x80 | (c >> 12 & 0x3f)));
    }
    text.push_back(char(0x80 | (c >> 6 & 0x3f)));
  }
  text.push_back(char(0x80 | (c & 0x3f)));
}

size_t whole(Bytes text, size_t at, size_t& broken, bool& open) {
  const uint8_t first = uint8_t(text[at]);
  broken = 1;
  open = false;
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  const size_t n = width(first);
  // the second byte's range: no longer forms, no surrogates, nothing beyond U+10FFFF
  const uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  for (; broken < n; broken++) {
    if (at + broken >= text.size()) return open = true, 0;
    const uint8_t byte = uint8_t(text[at + broken]);
    if (byte < (broken == 1 ? low : 0x80) || byte > (broken == 1 ? high : 0xbf)) return 0;
  }
  return n;
}

void append_repaired(std::string& text, Bytes bytes) {
  for (size_t at = 0, broken; at < bytes.size();) {
    bool open;
    if (const size_t n = whole(bytes, at, broken, open)) {
      text.append(bytes.substr(at, n));
      at += n;
    } else {
      text.append("\xef\xbf\xbd");
      at += broken;
    }
  }
}

}  // namespace edgeloop::text
