// K and V of the sequences of a session, and how they lie in memory: in blocks of 16 tokens, so that a product of q and
// 16 keys needs no horizontal sums.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format.h"

namespace edgeloop {

// A block of a cache holds tokens 16 b … 16 b + 15 of one slot:
//   for each KV head   k [head_dim][16 tokens], then v [16 tokens][head_dim]
// in floats or halves. What has not been written is anything at all, so tokens that are not seen must count for
// nothing, whatever they are: also NaN and infinity.
struct KvLayout {
  uint32_t kv_heads, head_dim;
  uint32_t bytes;  // of a number: 4, 2

  size_t part() const { return size_t(head_dim) * file::TILE * bytes; }        // of k, or of v, of one head
  size_t keys(uint32_t head) const { return 2 * part() * head; }               // where they begin in a block
  size_t values(uint32_t head) const { return 2 * part() * head + part(); }
  size_t block() const { return 2 * part() * kv_heads; }
};

}  // namespace edgeloop
