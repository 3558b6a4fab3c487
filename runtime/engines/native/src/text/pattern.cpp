// Patterns: what an exporter made of regular expressions, run with a stack of places to go back to.
#include "text.h"

namespace edgeloop::text {

using namespace file;

bool Matches::next() {
  for (size_t at = end; at < inside_.size();) {
    size_t to = at;
    if (match(pattern_, to) && to > at) {
      start = at;
      end = to;
      return true;
    }
    next_character(inside_, at);
  }
  return false;
}

// Whether the code at `pc` leads to a MATCH from `at` on, which then is where that ends.
bool Matches::match(uint32_t pc, size_t& at) {
  const size_t bottom = stack_.size();
  const uint32_t* code = code_.data;
  const auto character_in = [&](uint32_t set, size_t& place) {
    if (place >= inside_.size()) return false;
    size_t behind = place;
    if (!text_.in(set, next_character(inside_, behind))) return false;
    place = behind;
    return true;
  };
  size_t place = at;
  while (true) {
    if (!left_--)
      fail(EL_USAGE, "a pattern of the tokenizer takes too long for a text of %zu bytes; give a shorter text",
          inside_.size());
    bool holds = true;
    switch (code[pc]) {
      case MATCH:
        at = place;
        stack_.resize(bottom);
        return true;
      case SET:
        holds = character_in(code[pc + 1], place);
        pc += 2;
        break;
      case SPAN:
      case ALL: {
        const uint32_t set = code[pc + 1], least = code[pc + 2], most = code[pc + 3];
        size_t enough = place;
        uint32_t count = 0;
        while (count < most && character_in(set, place)) {
          if (++count == least) enough = place;
          if (!left_) break;
          left_--;
        }
        holds = count >= least;
        if (count > least && holds && code[pc] == SPAN) stack_.push_back({pc + 4, enough, place});
        pc += 4;
        break;
      }
      case EITHER:
        stack_.push_back({code[pc + 2], place, place});
        pc = code[pc + 1];
        break;
      case GO: pc = code[pc + 1]; break;
      case AHEAD: {
        if (++depth_ > 16) fail(EL_FORMAT, "a pattern of the tokenizer looks ahead while it looks ahead, too often");
        size_t ahead = place;
        holds = match(pc + 3, ahead) != (code[pc + 1] != 0);
        depth_--;
        pc = code[pc + 2];
        break;
      }
      default: {
        size_t last = place ? before(inside_, place) : 0;
        holds = (place && text_.in(code[pc + 2], next_character(inside_, last))) != (code[pc + 1] != 0);
        pc += 3;
      }
    }
    if (holds) continue;
    if (stack_.size() == bottom) return false;
    Frame& back = stack_.back();
    pc = back.pc;
    if (back.at == back.least) {  // the other way, or what must be there
      place = back.at;
      stack_.pop_back();
    } else {
      back.at = before(inside_, back.at);
      place = back.at;
      if (back.at <= back.least) stack_.pop_back();
    }
  }
}

}  // namespace edgeloop::text
