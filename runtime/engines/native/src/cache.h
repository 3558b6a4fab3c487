// K and V of the sequences of a session, and how they lie in memory: in blocks of 16 tokens, so that a product of q and
// 16 keys needs no horizontal sums.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format.h"

namespace el {

// Of one slot of one cache, block b are the tokens 16 b … 16 b + 15 of the sequence:
//   for each KV head   k [head_dim][16 tokens], then v [16 tokens][head_dim filled up to a multiple of 16]
// in floats or halves. A window's slot is a ring of blocks: block b is number b % ring. What has not been written is
// anything at all, so tokens that are not seen must count for nothing, whatever they are: also NaN and infinity.
struct KvLayout {
  uint32_t kv_heads, head_dim;
  uint32_t bytes;  // of a number: 4, 2

  size_t v_width() const { return (head_dim + TILE - 1) / TILE * TILE; }
  size_t head() const { return (size_t(head_dim) + v_width()) * TILE; }  // numbers of a block of one head
  size_t v_start() const { return size_t(head_dim) * TILE; }             // of those, where v begins
  size_t block() const { return kv_heads * head(); }                     // numbers of a block of all heads
};

}  // namespace el
