#include "lookup.h"

#include <algorithm>

namespace edgeloop::decode {

constexpr uint32_t Lookup::ORDERS[];

Lookup::Lookup() {
  for (Chains& chains : chains_) chains.last.assign(size_t(1) << BITS, NONE);
}

// Of the `order` tokens before `end`.
template <class At>
uint32_t Lookup::hash(const At& at, size_t end, uint32_t order) {
  uint64_t h = 0;
  for (size_t i = end - order; i < end; i++) h = (h ^ uint64_t(at(i))) * 0x9E3779B97F4A7C15u;
  return uint32_t(h >> (64 - BITS));
}

void Lookup::append(int64_t token) {
  ids_.push_back(token);
  const size_t end = ids_.size();  // a place: the number of tokens before the one that follows
  for (size_t k = 0; k < 2; k++) {
    Chains& chains = chains_[k];
    uint32_t before = NONE;
    if (end >= ORDERS[k]) {
      uint32_t& last = chains.last[hash([&](size_t i) { return ids_[i]; }, end, ORDERS[k])];
      before = last, last = uint32_t(end);
    }
    chains.before.push_back(before);
  }
}

void Lookup::truncate(size_t tokens) {
  while (ids_.size() > tokens) {
    const size_t end = ids_.size();
    for (size_t k = 0; k < 2; k++) {
      Chains& chains = chains_[k];
      if (end >= ORDERS[k]) chains.last[hash([&](size_t i) { return ids_[i]; }, end, ORDERS[k])] = chains.before.back();
      chains.before.pop_back();
    }
    ids_.pop_back();
  }
}

Lookup::Found Lookup::next(const int64_t* drafts, size_t count) const {
  const size_t text = ids_.size(), end = text + count;
  const auto at = [&](size_t i) { return i < text ? ids_[i] : drafts[i - text]; };
  const auto alike = [&](size_t place) {  // tokens before `place` that are as those before `end`
    uint32_t n = 0;
    while (n < LONGEST && n < place && at(place - 1 - n) == at(end - 1 - n)) n++;
    return n;
  };
  for (size_t k = 0; k < 2; k++) {
    if (end < ORDERS[k]) continue;
    uint32_t longest = 0, others = 0, same = 0, lengths[PLACES];
    int64_t tokens[PLACES];
    int seen = 0, best = 0;
    for (uint32_t place = chains_[k].last[hash(at, end, ORDERS[k])]; place != NONE && seen < PLACES;
         place = chains_[k].before[place - 1]) {
      if (place >= end) continue;  // the text's own end
      const uint32_t n = alike(place);
      if (n < ORDERS[k]) continue;  // another hash's
      tokens[seen] = at(place), lengths[seen] = n;
      if (n > longest) longest = n, best = seen;
      seen++;
    }
    if (!longest) continue;
    for (int i = 0; i < seen; i++)
      if (i != best && lengths[i] >= std::min(longest, 3u)) others++, same += tokens[i] == tokens[best];
    const uint32_t length = longest < 4 ? longest - 1 : longest < 6 ? 3 : longest < 10 ? 4 : longest < 20 ? 5 : 6;
    const Which which = !others ? ONCE : same == others ? ALIKE : UNLIKE;
    return {tokens[best], 3 * length + which};
  }
  return {};
}

}  // namespace edgeloop::decode
