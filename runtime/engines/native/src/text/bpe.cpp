// Byte-pair encoding: of all neighbours, those that were learned earliest become one token, the leftmost first.
#include <algorithm>
#include <queue>

#include "models.h"

namespace edgeloop::text {

using namespace file;

namespace {

// A token of a word, on its way.
struct Part {
  uint32_t token;
  int32_t before, behind;  // its neighbours, −1: none
};

struct Found {
  uint32_t rank = NONE, made = 0;
};

class Merges {
 public:
  explicit Merges(const Text& text)
      : table_(text.table<Merge>(MERGES)), place_(text.rules().merges), tokens_(text.rules().tokens) {}

  Found find(uint32_t left, uint32_t right) const {
    const uint64_t key = left | uint64_t(right) << 24;
    size_t at = uint64_t(hash_pair(left, right)) * place_.homes >> 32;
    const size_t end = std::min(table_.count, at + place_.probes);
    for (; at < end; at++) {
      const uint32_t* w = table_[at].words;
      const uint64_t found = w[0] | uint64_t(w[1] & 0xffff) << 32;
      if (found == key) {
        const uint32_t made = w[2] >> 8;
        if (made >= tokens_) return {};
        return {w[1] >> 16 | (w[2] & 0xff) << 16, made};
      }
      if (found == 0xffffffffffff) break;
    }
    return {};
  }

 private:
  View<Merge> table_;
  file::Table place_;
  uint32_t tokens_;
};

// Few tokens: the earliest pair is looked for among all.
void merge_few(const Merges& merges, std::vector<uint32_t>& ids, size_t first) {
  constexpr size_t MOST = FEW;
  Found pairs[MOST];
  uint32_t* tokens = ids.data() + first;
  size_t count = ids.size() - first;
  for (size_t i = 0; i + 1 < count; i++) pairs[i] = merges.find(tokens[i], tokens[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; i++)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].rank == NONE) break;
    tokens[best] = pairs[best].made;
    std::copy(tokens + best + 2, tokens + count, tokens + best + 1);
    if (best + 2 < count) std::copy(pairs + best + 2, pairs + count - 1, pairs + best + 1);
    count--;
    if (best + 1 < count) pairs[best] = merges.find(tokens[best], tokens[best + 1]);
    if (best) pairs[best - 1] = merges.find(tokens[best - 1], tokens[best]);
  }
  ids.resize(first + count);
}

// Any number: pairs wait in a queue. One whose tokens have changed since is passed over.
void merge_many(const Merges& merges, std::vector<uint32_t>& ids, size_t first) {
  struct Waits {
    uint32_t rank, at, made;
    bool operator<(const Waits& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  const size_t count = ids.size() - first;
  if (count > 0x7fffffff) fail(EL_USAGE, "a word of %zu characters; give a shorter text", count);
  std::vector<Part> parts(count);
  std::priority_queue<Waits> queue;
  const auto wait = [&](int32_t at) {
    const Found found = merges.find(parts[size_t(at)].token, parts[size_t(parts[size_t(at)].behind)].token);
    if (found.rank != NONE) queue.push({found.rank, uint32_t(at), found.made});
  };
  for (size_t i = 0; i < count; i++)
    parts[i] = {ids[first + i], int32_t(i) - 1, i + 1 < count ? int32_t(i) + 1 : -1};
  for (size_t i = 0; i + 1 < count; i++) wait(int32_t(i));
  while (!queue.empty()) {
    const Waits top = queue.top();
    queue.pop();
    Part& left = parts[top.at];
    if (left.token == NONE || left.behind < 0) continue;
    Part& right = parts[size_t(left.behind)];
    const Found now = merges.find(left.token, right.token);
    if (now.rank == NONE || now.made != top.made) continue;
    left.token = top.made;
    right.token = NONE;
    left.behind = right.behind;
    if (left.behind >= 0) parts[size_t(left.behind)].before = int32_t(top.at);
    if (left.before >= 0) wait(left.before);
    if (left.behind >= 0) wait(int32_t(top.at));
  }
  ids.resize(first);
  for (const Part& part : parts)
    if (part.token != NONE) ids.push_back(part.token);
}

// The tokens of single characters, as Text::encode's caller gets them before anything is merged.
void characters(const Text& text, Bytes word, std::vector<uint32_t>& ids) {
  const Rules& rules = text.rules();
  const View<uint32_t> bytes = text.table<uint32_t>(BYTE_TOKENS);
  const Bytes prefix = text.string(rules.prefix), suffix = text.string(rules.suffix);
  const bool raw = text.flag(RAW_BYTES);
  bool unknown = false;  // one waits, so that it is fused with those that follow
  std::string changed;
  for (size_t at = 0; at < word.size();) {
    const size_t size = raw ? 1 : std::min(width(uint8_t(word[at])), word.size() - at), end = at + size;
    Bytes piece = word.substr(at, size);
    uint32_t id;
    if (raw) {
      id = bytes[uint8_t(word[at])];
    } else {
      const bool continues = at && !prefix.empty(), ends = end == word.size() && !suffix.empty();
      if (continues || ends) {
        changed.assign(continues ? prefix : Bytes()).append(piece).append(ends ? suffix : Bytes());
        piece = changed;
      }
      id = text.find(piece);
    }
    at = end;
    if (id != NONE) {
      if (unknown) ids.push_back(rules.unknown);
      unknown = false;
      ids.push_back(id);
      continue;
    }
    if (text.flag(BYTE_FALLBACK)) {
      const size_t first = ids.size();
      for (char c : piece) ids.push_back(bytes[uint8_t(c)]);
      if (std::find(ids.begin() + ptrdiff_t(first), ids.end(), NONE) == ids.end()) continue;
      ids.resize(first);
    }
    if (rules.unknown == NONE) continue;
    if (unknown && !text.flag(FUSE_UNKNOWN)) ids.push_back(rules.unknown);
    unknown = true;
  }
  if (unknown) ids.push_back(rules.unknown);
}

}  // namespace

void bpe(const Text& text, Bytes word, std::vector<uint32_t>& ids) {
  if (text.flag(IGNORE_MERGES)) {
    const uint32_t id = text.find(word);
    if (id != NONE) return ids.push_back(id);
  }
  const size_t first = ids.size();
  characters(text, word, ids);
  const Merges merges(text);
  ids.size() - first <= FEW ? merge_few(merges, ids, first) : merge_many(merges, ids, first);
}

}  // namespace edgeloop::text
