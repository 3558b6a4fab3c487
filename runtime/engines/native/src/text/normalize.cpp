// Normalizers: what a text becomes before it is split.
#include <algorithm>

#include "text.h"

namespace edgeloop::text {

using namespace file;

namespace {

constexpr uint32_t HANGUL = 0xac00, LEADS = 0x1100, VOWELS = 0x1161, TAILS = 0x11a7;  // the first of each
constexpr uint32_t JOINER = 0x200d;
constexpr uint32_t VOWEL_COUNT = 21, TAIL_COUNT = 28, HANGUL_COUNT = 19 * VOWEL_COUNT * TAIL_COUNT;

// Of records that ascend by code point.
const Mapped* mapped(const Mapped* first, const Mapped* last, uint32_t character) {
  const Mapped* found = std::lower_bound(first, last, character, [](const Mapped& m, uint32_t c) { return m.code_point < c; });
  return found != last && found->code_point == character ? found : nullptr;
}

// A character, and where it may stand among marks: 0 begins anew.
struct Marked {
  uint32_t character, order;
};

// Marks in their order, as far as one that begins anew.
void reorder(std::vector<Marked>& text) {
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    while (end < text.size() && text[end].order) end++;
    if (end - at > 1) {
      const std::vector<Marked> marks(text.begin() + ptrdiff_t(at), text.begin() + ptrdiff_t(end));
      size_t to = at;
      for (uint32_t order = 1; to < end; order++)
        for (const Marked& mark : marks)
          if (mark.order == order) text[to++] = mark;
    }
    at = end + 1;
  }
}

uint32_t composed(const View<Composed>& table, uint32_t first, uint32_t second) {
  if (first - LEADS < 19 && second - VOWELS < VOWEL_COUNT)
    return HANGUL + ((first - LEADS) * VOWEL_COUNT + second - VOWELS) * TAIL_COUNT;
  if (first - HANGUL < HANGUL_COUNT && (first - HANGUL) % TAIL_COUNT == 0 && second - TAILS - 1 < TAIL_COUNT - 1)
    return first + second - TAILS;
  const Composed wanted{first, second, 0};
  const Composed* found = std::lower_bound(table.begin(), table.end(), wanted, [](const Composed& a, const Composed& b) {
    return a.first != b.first ? a.first < b.first : a.second < b.second;
  });
  return found != table.end() && found->first == first && found->second == second ? found->made : 0;
}

void compose(const View<Composed>& table, std::vector<Marked>& text) {
  size_t kept = 0, first = SIZE_MAX;  // the last that began anew
  for (const Marked now : text) {
    if (first != SIZE_MAX) {
      const uint32_t last = text[kept - 1].order;
      const bool near = kept - 1 == first || (last && last < now.order);
      const uint32_t made = near ? composed(table, text[first].character, now.character) : 0;
      if (made) {
        text[first].character = made;
        continue;
      }
    }
    if (!now.order) first = kept;
    text[kept++] = now;
  }
  text.resize(kept);
}

// Whether syllables and their parts, of which the second stands behind the first, are one cluster: Unicode's GB6, GB7, GB8.
bool one_syllable(uint32_t first, uint32_t second) {
  enum : uint32_t { NEITHER, LEAD = 1, VOWEL = 2, TAIL = 4, WITH_VOWEL = 8, WITH_TAIL = 16 };
  const auto kind = [](uint32_t c) -> uint32_t {
    if (c - LEADS < 0x60 || c - 0xa960 < 29) return LEAD;
    if (c - VOWELS + 1 < 0x48 || c - 0xd7b0 < 23) return VOWEL;
    if (c - TAILS - 1 < 0x58 || c - 0xd7cb < 49) return TAIL;
    if (c - HANGUL < HANGUL_COUNT) return (c - HANGUL) % TAIL_COUNT ? WITH_TAIL : WITH_VOWEL;
    return NEITHER;
  };
  const uint32_t before = kind(first), behind = kind(second);
  return (before & LEAD && behind & ~uint32_t(TAIL)) || (before & (VOWEL | WITH_VOWEL) && behind & (VOWEL | TAIL)) ||
         (before & (TAIL | WITH_TAIL) && behind & TAIL);
}

// What SentencePiece's table, a double array, makes of the shortest of its keys that `text` begins with; null: none does.
const char* charsmap_value(const View<uint8_t>& table, Bytes text) {
  const auto unit = [&](size_t at) {
    uint32_t found = 0;
    const uint8_t* bytes = table.data + 4 + 4 * at;
    for (int i = 3; i >= 0; i--) found = found << 8 | bytes[i];
    return found;
  };
  const auto number = [&] {
    uint32_t found = 0;
    for (int i = 3; i >= 0; i--) found = found << 8 | table[size_t(i)];
    return found;
  };
  if (table.count < 8) return nullptr;
  const size_t units = std::min<size_t>(number(), table.count - 4) / 4;
  const auto offset = [](uint32_t u) { return size_t(u >> 10) << ((u & 1u << 9) >> 6); };
  if (!units) return nullptr;
  size_t at = offset(unit(0));
  for (char c : text) {
    at ^= uint8_t(c);
    if (!c || at >= units) return nullptr;
    const uint32_t u = unit(at);
    if ((u & 0x800000ff) != uint8_t(c)) return nullptr;
    at ^= offset(u);
    if (!(u >> 8 & 1)) continue;
    if (at >= units) return nullptr;
    const size_t value = 4 + 4 * units + (unit(at) & 0x7fffffff);
    // The table ends with a zero, as check says.
    return value < table.count ? reinterpret_cast<const char*>(table.data + value) : nullptr;
  }
  return nullptr;
}

}  // namespace

// Characters that stay as they are, whatever stands beside them, are copied; the others, with the one before them, changed.
void Text::compose(const Step& step, std::string& text) const {
  const Mapped* maps = maps_.data + step.first;
  std::string made;
  std::vector<Marked> some;
  const auto add = [&](uint32_t c) {
    const Mapped* order = mapped(reorder_.begin(), reorder_.end(), c);
    some.push_back({c, order ? order->bytes & 255 : 0});
  };
  const auto decompose = [&](uint32_t c) {
    const uint32_t syllable = c - HANGUL;
    if (syllable < HANGUL_COUNT) {
      add(LEADS + syllable / (VOWEL_COUNT * TAIL_COUNT));
      add(VOWELS + syllable / TAIL_COUNT % VOWEL_COUNT);
      if (syllable % TAIL_COUNT) add(TAILS + syllable % TAIL_COUNT);
    } else if (const Mapped* found = mapped(maps, maps + step.count, c)) {
      const Bytes parts = string({found->offset, found->bytes});
      for (size_t at = 0; at < parts.size();) add(next_character(parts, at));
    } else {
      add(c);
    }
  };
  const auto changes = [&](size_t at) { return in(step.set, next_character(text, at)); };
  size_t done = 0, stays = 0;  // copied; the last that stays begins at
  for (size_t at = 0; at < text.size();) {
    if (!changes(at)) {
      stays = at;
      next_character(text, at);
      continue;
    }
    stays = std::max(stays, done);
    made.append(text, done, stays - done);
    some.clear();
    for (at = stays; at < text.size() && (at == stays || changes(at));) decompose(next_character(text, at));
    reorder(some);
    if (step.flags & 1) text::compose(compose_, some);
    for (const Marked& m : some) append(made, m.character);
    done = stays = at;
  }
  if (done) text = made.append(text, done, std::string::npos);
}

// A cluster of characters, or a character, becomes what the table has for it.
void Text::map_clusters(const Step& step, std::string& text) const {
  const View<uint8_t> table = this->table<uint8_t>(CHARSMAP);
  const Bytes all = text;
  std::string made;
  const auto rule = [&](uint32_t c, uint32_t number) { return step.flags & 1 && in(step.more + number, c); };
  for (size_t at = 0; at < all.size();) {
    // What a cluster is: marks go with what is before them, some signs with what is behind; consonants that a sign links to
    // others (GB9c), pictures with a joiner between (GB11) and syllables are one. So are two letters that stand for a flag,
    // which are too long for the table whether they are or not.
    size_t end = at;
    uint32_t last = next_character(all, end), linked = 0, pictured = 0;  // the first character's, then what follows it
    const auto follow = [&](uint32_t c) {
      linked = rule(c, CONSONANT) ? 1 : linked && rule(c, LINKER) ? 2 : linked && rule(c, LINKED) ? linked : 0;
      pictured = rule(c, PICTURE) ? 1 : pictured == 1 && c == JOINER ? 2 : pictured == 1 && rule(c, EXTENDING) ? 1 : 0;
    };
    follow(last);
    for (size_t next = end; end < all.size(); end = next) {
      const uint32_t c = next_character(all, next);
      const bool pair = last == '\r' && c == '\n';
      const bool joins = !in(step.first, last) && (in(step.set, c) || (in(step.count, last) && !in(step.first, c)));
      const bool word = linked == 2 && rule(c, CONSONANT);
      if (!pair && !joins && !word && !(pictured == 2 && rule(c, PICTURE)) && !one_syllable(last, c)) break;
      follow(c);
      last = c;
    }
    const auto change = [&](Bytes part) {
      const char* value = charsmap_value(table, part);
      if (value) made.append(value);
      return value != nullptr;
    };
    if (end - at < 6 && change(all.substr(at, end - at))) {
      at = end;
      continue;
    }
    while (at < end) {
      const size_t start = at;
      next_character(all, at);
      if (!change(all.substr(start, at - start))) made.append(all.substr(start, at - start));
    }
  }
  text.swap(made);
}

void Text::normalize(const Step& step, std::string& text, bool& first) const {
  switch (step.kind) {
    case REPLACE: return replace(step, text, first);
    case COMPOSED: return compose(step, text);
    case CLUSTERS: return map_clusters(step, text);
    case PREPEND:
      if (!text.empty()) text.insert(0, string(step.a));
      return;
    case MAP: {
      std::string made;
      for (size_t at = 0; at < text.size();) {
        const size_t start = at;
        const uint32_t c = next_character(text, at);
        const Mapped* found = in(step.set, c) ? mapped(maps_.data + step.first, maps_.data + step.first + step.count, c) : nullptr;
        if (found)
          made.append(string({found->offset, found->bytes}));
        else
          made.append(text, start, at - start);
      }
      text.swap(made);
      return;
    }
    default: {  // STRIP
      size_t start = 0, end = text.size();
      if (step.flags & 1)
        for (size_t next = 0; next < end && in(rules_->space, next_character(text, next));) start = next;
      while (step.flags & 2 && end > start) {
        size_t last = before(text, end);
        const size_t at = last;
        if (!in(rules_->space, next_character(text, last))) break;
        end = at;
      }
      if (start) first = false;
      text = text.substr(start, end - start);
    }
  }
}

}  // namespace edgeloop::text
