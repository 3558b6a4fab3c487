// A text as a string of JSON: what saved contexts hold, and what the command lines print with --json.
#pragma once

#include <cstdio>
#include <string>

namespace edgeloop::json {

// `text` between quotes.
inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\u%04x", unsigned(static_cast<unsigned char>(c)));
    if (c == '"' || c == '\\') out += '\\', out += c;
    else if (static_cast<unsigned char>(c) < 0x20) out += escape;
    else out += c;
  }
  return out + '"';
}

}  // namespace edgeloop::json
