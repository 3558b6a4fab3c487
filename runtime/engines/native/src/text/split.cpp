// What lies between a text and its words: added tokens, which are found as they are written, and where texts are split.
#include <algorithm>

#include "text.h"

namespace edgeloop::text {

using namespace file;

const Added* Text::added_at(Bytes text, size_t at, bool normalized) const {
  const Added* longest = nullptr;
  uint32_t hash = HASH;
  const size_t most = std::min<size_t>(text.size() - at, rules_->longest_added);
  for (size_t n = 1; n <= most; n++) {
    hash = hash_byte(hash, uint8_t(text[at + n - 1]));
    const uint32_t key = mixed(hash);
    size_t slot = uint64_t(key) * rules_->added.homes >> 32;
    const size_t end = std::min(added_slots_.count, slot + rules_->added.probes);
    for (; slot < end && added_slots_[slot] != NONE; slot++) {
      const uint32_t number = added_slots_[slot] & MAX_TOKENS;
      if (added_slots_[slot] >> 24 != (key & 0xff) || number >= added_.count) continue;
      const Added& a = added_[number];
      if (bool(a.flags & NORMALIZED) == normalized && string(a.text) == text.substr(at, n)) longest = &a;
    }
  }
  return longest;
}

void Text::find_added(const Work& from, bool normalized, std::vector<Span>& to) const {
  for (const Span& span : from.spans) {
    if (span.token >= 0) to.push_back(span);
    if (span.token >= 0 || !span.bytes) continue;
    const Bytes text = from.of(span);
    size_t done = 0;  // what is before it is in `to`
    const auto plain = [&](size_t end) {
      if (end > done) to.push_back({span.start + done, end - done, -1, span.first && !done});
    };
    for (size_t at = 0; at < text.size();) {
      const Added* a = added_begins_[uint8_t(text[at])] ? added_at(text, at, normalized) : nullptr;
      if (!a) {
        at++;
        continue;
      }
      size_t start = at, end = at + a->text.bytes;
      at = end;
      if (flag(SPLIT_SPECIAL) && a->flags & SPECIAL) continue;
      if (a->flags & SINGLE_WORD) {
        const auto is_word = [&](size_t place) { return in(rules_->word, next_character(text, place)); };
        if ((start && is_word(before(text, start))) || (end < text.size() && is_word(end))) continue;
      }
      if (a->flags & LEFT)
        while (start > done) {
          size_t last = before(text, start);
          const size_t left = last;
          if (!in(rules_->space, next_character(text, last))) break;
          start = left;
        }
      start = std::max(start, done);
      if (a->flags & RIGHT)
        for (size_t next = end; next < text.size() && in(rules_->space, next_character(text, next));) end = next;
      plain(start);
      to.push_back({span.start + start, end - start, a->id, false});
      done = end;
    }
    plain(text.size());
  }
}

namespace {

// Pieces of a text, and whether each is a match, as `behavior` puts them together.
struct Piece {
  size_t start, end;
  bool match;
};

void together(std::vector<Piece>& pieces, uint32_t behavior) {
  size_t kept = 0;
  bool last = false;
  if (behavior == WITH_NEXT) {
    for (size_t i = pieces.size(); i-- > 0;) {
      const Piece now = pieces[i];
      if (now.match && !last && kept) {
        pieces[pieces.size() - kept].start = now.start;
      } else {
        kept++;
        pieces[pieces.size() - kept] = now;
      }
      last = now.match;
    }
    pieces.erase(pieces.begin(), pieces.end() - ptrdiff_t(kept));
    return;
  }
  for (const Piece now : pieces) {
    const bool joins = behavior == CONTIGUOUS ? now.match == last : behavior == WITH_PREVIOUS && now.match && !last;
    if (joins && kept)
      pieces[kept - 1].end = now.end;
    else if (behavior != REMOVED || !now.match)
      pieces[kept++] = now;
    last = now.match;
  }
  pieces.resize(kept);
}

}  // namespace

void Text::split(const Step& step, Work& work) const {
  std::vector<Span> spans;
  if (step.kind == PATTERN) {
    std::vector<Piece> pieces;
    const bool inverted = step.flags & INVERTED;
    for (const Span& span : work.spans) {
      if (span.token >= 0) {
        spans.push_back(span);
        continue;
      }
      pieces.clear();
      size_t done = 0;
      for (Matches matches(*this, step.pattern, work.of(span)); matches.next(); done = matches.end) {
        if (matches.start > done) pieces.push_back({done, matches.start, inverted});
        pieces.push_back({matches.start, matches.end, !inverted});
      }
      if (done < span.bytes) pieces.push_back({done, span.bytes, inverted});
      together(pieces, step.flags & ~INVERTED);
      for (const Piece& p : pieces) spans.push_back({span.start + p.start, p.end - p.start, -1, span.first && !p.start});
    }
    work.spans.swap(spans);
    return;
  }
  // What changes the text: it is written anew.
  std::string text;
  text.reserve(work.text.size() + work.text.size() / 4);
  const Bytes mark = step.kind == METASPACE ? string(step.a) : Bytes(" ");
  for (const Span& span : work.spans) {
    const Bytes old = work.of(span);
    const size_t start = text.size();
    if (span.token < 0) {
      const bool always = step.kind == SPACED || step.flags & 1 || (step.flags & 2 && span.first);
      const bool has = old.substr(0, mark.size()) == mark || (step.kind == METASPACE && old.substr(0, 1) == " ");
      if (always && !has) text.append(mark);
      if (step.kind == SPACED) {
        text.append(old);
      } else {
        for (char c : old) c == ' ' ? void(text.append(mark)) : text.push_back(c);
      }
    }
    if (span.token >= 0 || step.kind == SPACED || !(step.flags & 4)) {
      spans.push_back({start, text.size() - start, span.token, span.first});
      continue;
    }
    // Each word begins with the mark.
    for (size_t from = start; from < text.size();) {
      size_t to = text.find(mark, from + (text.compare(from, mark.size(), mark) ? 0 : mark.size()));
      // A mark that follows a mark begins a word of its own.
      if (to == std::string::npos) to = text.size();
      spans.push_back({from, to - from, -1, span.first && from == start});
      from = to;
    }
  }
  work.text.swap(text);
  work.spans.swap(spans);
}

}  // namespace edgeloop::text
