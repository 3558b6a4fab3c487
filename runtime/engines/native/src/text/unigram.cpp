// Models that look for whole tokens in a word: Unigram takes those of the best score together, WordPiece the longest from
// left to right, WordLevel the word itself.
#include <algorithm>

#include "models.h"

namespace edgeloop::text {

using namespace file;

namespace {

[[noreturn]] void unknown() {
  fail(EL_USAGE, "the tokenizer has no token for a character of the text, nor one for unknown ones; leave it out");
}

uint32_t known(const Text& text, uint32_t id) {
  if (id == NONE) id = text.rules().unknown;
  if (id == NONE) unknown();
  return id;
}

// Calls `found(id, end)` for every token of the model that begins at `at`, behind `prefix`, shorter ones first.
template <class Found>
void each_token(const Text& text, Bytes prefix, Bytes word, size_t at, Found found) {
  std::string whole(prefix);
  uint32_t hash = HASH;
  for (char c : prefix) hash = hash_byte(hash, uint8_t(c));
  const size_t longest = text.rules().longest;
  for (size_t end = at; end < word.size() && end - at + prefix.size() < longest;) {
    for (size_t n = width(uint8_t(word[end])); n-- && end < word.size(); end++) hash = hash_byte(hash, uint8_t(word[end]));
    Bytes bytes = word.substr(at, end - at);
    if (!prefix.empty()) {
      whole.resize(prefix.size());
      bytes = whole.append(bytes);
    }
    const uint32_t id = text.find(bytes, hash);
    if (id != NONE) found(id, end);
  }
}

}  // namespace

void unigram(const Text& text, Bytes word, std::vector<uint32_t>& ids) {
  struct Best {
    double score = 0;
    size_t start = SIZE_MAX;  // of the token that ends here; none does
    uint32_t id = 0;
  };
  const View<double> scores = text.table<double>(SCORES);
  std::vector<Best> best(word.size() + 1);
  const auto offer = [&](size_t start, size_t end, double score, uint32_t id) {
    Best& now = best[end];
    const double all = score + best[start].score;
    if (now.start == SIZE_MAX || all > now.score) now = {all, start, id};
  };
  for (size_t at = 0, next; at < word.size(); at = next) {
    next = std::min(at + width(uint8_t(word[at])), word.size());
    bool alone = false;
    each_token(text, {}, word, at, [&](uint32_t id, size_t end) {
      offer(at, end, scores[id], id);
      alone = alone || end == next;
    });
    if (!alone) offer(at, next, text.rules().unknown_score, known(text, NONE));
  }
  struct Piece {
    size_t start, end;
    bool unknown;
  };
  std::vector<Piece> pieces;  // the last one first; unknown ones side by side are one
  for (size_t end = word.size(); end > 0; end = best[end].start) {
    const size_t start = best[end].start;
    const bool missing = best[end].id == text.rules().unknown;
    if (missing && !pieces.empty() && pieces.back().unknown)
      pieces.back().start = start;
    else
      pieces.push_back({start, end, missing});
  }
  const View<uint32_t> bytes = text.table<uint32_t>(BYTE_TOKENS);
  for (size_t i = pieces.size(); i-- > 0;) {
    const Bytes piece = word.substr(pieces[i].start, pieces[i].end - pieces[i].start);
    const uint32_t id = text.find(piece);
    if (id == NONE && text.flag(BYTE_FALLBACK)
        && std::all_of(piece.begin(), piece.end(), [&](char c) { return bytes[uint8_t(c)] != NONE; })) {
      for (char c : piece) ids.push_back(bytes[uint8_t(c)]);
      continue;
    }
    ids.push_back(known(text, id));
  }
}

void word_pieces(const Text& text, Bytes word, std::vector<uint32_t>& ids) {
  const size_t first = ids.size();
  size_t characters = 0;
  for (char c : word) characters += (uint8_t(c) & 0xc0) != 0x80;
  bool whole = characters <= text.rules().most_characters;
  for (size_t at = 0; whole && at < word.size();) {
    uint32_t longest = NONE;
    size_t end = at;
    each_token(text, at ? text.string(text.rules().prefix) : Bytes(), word, at, [&](uint32_t id, size_t to) {
      longest = id;
      end = to;
    });
    whole = longest != NONE;
    if (whole) ids.push_back(longest);
    at = end;
  }
  if (whole) return;
  ids.resize(first);
  ids.push_back(known(text, NONE));
}

void word_level(const Text& text, Bytes word, std::vector<uint32_t>& ids) {
  ids.push_back(known(text, text.find(word)));
}

}  // namespace edgeloop::text
