// Characters, broken ones among them, and stop strings, against definitions in plain loops. Exit status 0: all hold.
#include <algorithm>
#include <string>
#include <vector>

#include "test_lot.h"
#include "text/writer.h"

using namespace edgeloop;
using namespace edgeloop::test;
using text::Bytes;

namespace {

// Every character comes back, and what is cut off it becomes U+FFFD once.
void characters() {
  for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string made;
    text::append(made, c);
    size_t at = 0, broken = 0;
    bool open = false;
    expect(made.size() == text::width(uint8_t(made[0])), "the width of a character");
    expect(text::next_character(made, at) == c && at == made.size(), "a character comes back");
    expect(text::whole(made, 0, broken, open) == made.size(), "a character is whole");
    expect(text::before(made, made.size()) == 0, "a character begins where it began");
    for (size_t cut = 1; cut < made.size(); cut++) {
      const std::string part = made.substr(0, cut);
      expect(!text::whole(part, 0, broken, open) && open && broken == cut, "part of a character may become one");
      std::string repaired;
      text::append_repaired(repaired, part + "a");
      expect(repaired == "\xef\xbf\xbd" "a", "part of a character is one U+FFFD");
    }
  }
}

// What is no UTF-8, as Unicode's table of well-formed sequences has it.
void broken_bytes() {
  const struct {
    const char* bytes;
    int count;  // of U+FFFD
  } cases[] = {{"\x80", 1}, {"\xc0\xaf", 2}, {"\xe0\x80\xaf", 3}, {"\xed\xa0\x80", 3}, {"\xf4\x91\x80\x80", 4},
      {"\xf5\x80\x80\x80", 4}, {"\xe2\x28\xa1", 2}, {"\xf0\x9f\x92\xf0\x9f\x92\xa9", 1}, {"\xff\xfe", 2}};
  for (const auto& c : cases) {
    std::string repaired;
    text::append_repaired(repaired, c.bytes);
    int found = 0;
    for (size_t at = 0; (at = repaired.find("\xef\xbf\xbd", at)) != std::string::npos; at += 3) found++;
    expect(found == c.count, "broken bytes become as many U+FFFD as they should");
  }
}

// Stop strings in a stream of pieces: found where the whole text has them first, and what may become one is held back.
void stops() {
  for (uint64_t turn = 0; turn < 3000; turn++) {
    Lot lot(turn + 1);
    const auto letters = [&](uint32_t most) {
      std::string made;
      for (uint32_t n = 1 + lot.below(most); n--;) made.push_back(char('a' + lot.below(2)));
      return made;
    };
    text::Stops stops;
    std::vector<std::string> wanted;
    for (uint32_t n = 1 + lot.below(3); n--;) {
      wanted.push_back(letters(5));
      stops.add(wanted.back());
    }
    std::string all;
    for (int piece = 0; piece < 12; piece++) {
      const std::string data = letters(4);
      const size_t old = all.size();
      all += data;
      size_t first = 0, may = 0;
      for (const std::string& stop : wanted) {
        for (size_t end = old + 1; end <= all.size(); end++)
          if (end >= stop.size() && all.compare(end - stop.size(), stop.size(), stop) == 0)
            first = std::max(first, all.size() - (end - stop.size()));
        for (size_t n = std::min(stop.size() - 1, all.size()); n > 0; n--)
          if (all.compare(all.size() - n, n, stop, 0, n) == 0) {
            may = std::max(may, n);
            break;
          }
      }
      const bool found = stops.push(data);
      expect(found == (first > 0), "a stop string is found where it ends");
      expect(stops.begins == (found ? first : may), "where a stop string begins");
      if (found) break;
    }
  }
}

}  // namespace

int main() {
  characters();
  broken_bytes();
  stops();
  return ended("text");
}
