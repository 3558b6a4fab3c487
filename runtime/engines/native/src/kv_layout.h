// How tokens lie in a block of K and V, and how they are copied out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format.h"
#include "kernels/kernels.h"

namespace edgeloop {

// A block of a cache holds tokens 16 b … 16 b + 15 of one slot: for each KV head K, then V, as the kernels read them
// (kernels.h, Cached). What has not been written is anything at all, so tokens that are not seen must count for
// nothing, whatever they are: also NaN and infinity.
struct KvLayout {
  uint32_t kv_heads, head_dim;
  CacheKind kind;

  size_t part() const { return cache_part(kind, int32_t(head_dim)); }  // of k, or of v, of one head
  size_t keys(uint32_t head) const { return 2 * part() * head; }       // where they begin in a block
  size_t values(uint32_t head) const { return 2 * part() * head + part(); }
  size_t block() const { return 2 * part() * kv_heads; }
  // Bytes of a token, as it is copied out: k [kv_heads][head_dim], v likewise; of int8 then the scales of k [kv_heads], of v.
  size_t row() const;
  // A token between a block and its row.
  void read(uint32_t token, const uint8_t* block, uint8_t* row) const;
  void write(uint32_t token, const uint8_t* row, uint8_t* block) const;
};

}  // namespace edgeloop
