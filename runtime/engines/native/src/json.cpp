#include "json.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace edgeloop::json {

namespace {

class Reader {
 public:
  Reader(const char* text, size_t bytes) : at_(text), end_(text + bytes) {}

  Value whole() {
    Value found = value(0);
    space();
    if (at_ != end_) wrong();
    return found;
  }

 private:
  [[noreturn]] static void wrong() { fail(EL_FORMAT, "a text that is no JSON"); }
  void space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) at_++;
  }
  char next() {
    if (at_ == end_) wrong();
    return *at_++;
  }
  char peek() const { return at_ < end_ ? *at_ : '\0'; }
  void word(const char* expected) {
    for (; *expected; expected++)
      if (next() != *expected) wrong();
  }

  Value value(int nested) {
    if (nested > MOST_NESTED) wrong();
    space();
    Value found;
    switch (peek()) {
      case '{': return object(nested);
      case '[': return array(nested);
      case '"': found.kind = Value::text, found.string = text(); break;
      case 't': word("true"), found.kind = Value::boolean, found.truth = true; break;
      case 'f': word("false"), found.kind = Value::boolean; break;
      case 'n': word("null"); break;
      default: number(found);
    }
    return found;
  }

  Value object(int nested) {
    Value found;
    found.kind = Value::object;
    at_++;
    space();
    if (peek() == '}') return at_++, found;
    for (;;) {
      space();
      if (peek() != '"') wrong();
      std::string name = text();
      space();
      if (next() != ':') wrong();
      found.members.emplace_back(std::move(name), value(nested + 1));
      space();
      const char c = next();
      if (c == '}') return found;
      if (c != ',') wrong();
    }
  }

  Value array(int nested) {
    Value found;
    found.kind = Value::array;
    at_++;
    space();
    if (peek() == ']') return at_++, found;
    for (;;) {
      found.items.push_back(value(nested + 1));
      space();
      const char c = next();
      if (c == ']') return found;
      if (c != ',') wrong();
    }
  }

  void number(Value& found) {
    const char* begin = at_;
    while (at_ < end_ && (std::strchr("+-.eE", *at_) || (*at_ >= '0' && *at_ <= '9')) && *at_) at_++;
    found.kind = Value::number;
    found.string.assign(begin, at_);
    if (found.string.empty() || found.string.size() > 64) wrong();
    char* end = nullptr;
    found.amount = std::strtod(found.string.c_str(), &end);
    if (*end) wrong();
  }

  uint32_t hex4() {
    uint32_t x = 0;
    for (int i = 0; i < 4; i++) {
      const char c = next();
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) wrong();
      x = x * 16 + uint32_t(digit);
    }
    return x;
  }

  static void put(std::string& out, uint32_t c) {
    if (c < 0x80) {
      out += char(c);
    } else if (c < 0x800) {
      out += char(0xc0 | c >> 6), out += char(0x80 | (c & 63));
    } else if (c < 0x10000) {
      out += char(0xe0 | c >> 12), out += char(0x80 | (c >> 6 & 63)), out += char(0x80 | (c & 63));
    } else {
      out += char(0xf0 | c >> 18), out += char(0x80 | (c >> 12 & 63)), out += char(0x80 | (c >> 6 & 63)), out += char(0x80 | (c & 63));
    }
  }

  std::string text() {
    std::string found;
    at_++;
    for (;;) {
      const char c = next();
      if (c == '"') return found;
      if (uint8_t(c) < 0x20) wrong();
      if (c != '\\') {
        found += c;
        continue;
      }
      const char escape = next();
      static const char names[] = "\"\\/bfnrt", are[] = "\"\\/\b\f\n\r\t";
      if (escape == 'u') {
        uint32_t x = hex4();
        if (x >= 0xd800 && x < 0xdc00) {
          word("\\u");
          const uint32_t low = hex4();
          if (low < 0xdc00 || low > 0xdfff) wrong();
          x = 0x10000 + ((x - 0xd800) << 10) + (low - 0xdc00);
        } else if (x >= 0xdc00 && x < 0xe000) {
          wrong();
        }
        put(found, x);
        continue;
      }
      const char* name = escape ? std::strchr(names, escape) : nullptr;
      if (!name) wrong();
      found += are[name - names];
    }
  }

  const char *at_, *end_;
};

}  // namespace

const Value* Value::find(const char* name) const {
  for (const auto& member : members)
    if (member.first == name) return &member.second;
  return nullptr;
}

Value read(const char* text, size_t bytes) { return Reader(text, bytes).whole(); }

}  // namespace edgeloop::json
