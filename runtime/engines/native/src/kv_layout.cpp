#include "kv_layout.h"

#include <cstring>

namespace edgeloop {

namespace {

constexpr uint32_t TILE = file::TILE;

size_t number_bytes(CacheKind kind) { return kind == CacheKind::float32 ? 4 : kind == CacheKind::float16 ? 2 : 1; }

// Where number d of a token lies in K, or in V, of a head; in bytes.
size_t key_at(const KvLayout& layout, uint32_t token, uint32_t d) {
  if (layout.kind == CacheKind::int8) return (d / 4 * TILE + token) * 4 + d % 4;
  return (d * TILE + token) * number_bytes(layout.kind);
}
size_t value_at(const KvLayout& layout, uint32_t token, uint32_t d) {
  if (layout.kind == CacheKind::int8) return (token / 4 * size_t(padded(int32_t(layout.head_dim))) + d) * 4 + token % 4;
  return (size_t(token) * layout.head_dim + d) * number_bytes(layout.kind);
}

uint32_t int4_dims(uint32_t head_dim) { return uint32_t(round_up(int32_t(head_dim), 2 * LANES)); }

// As `each`, in int4: K in words of 8 nibbles, V in 16 bytes for each 32 dims, a float16 for each 16.
template <class Move>
void each_int4(const KvLayout& layout, uint32_t column, Move move) {
  const size_t dims = int4_dims(layout.head_dim), side = layout.kv_heads * dims / 2, scales = layout.kv_heads * dims / 8;
  for (uint32_t h = 0; h < layout.kv_heads; h++) {
    for (size_t d = 0; d < dims; d += 8) move(layout.keys(h) + d * TILE / 2 + column * 4, h * dims / 2 + d / 2, 4);
    for (size_t d = 0; d < dims; d += 32)
      move(layout.values(h) + (d / 2 + column) * TILE, side + h * dims / 2 + d / 2, 16);
    for (size_t d = 0; d < dims; d += 16) {
      const size_t from = dims * TILE / 2 + (d + column) * 2, to = 2 * side + h * dims / 8 + d / 8;
      move(layout.keys(h) + from, to, 2);
      move(layout.values(h) + from, to + scales, 2);
    }
  }
}

// move(bytes of the block, bytes of the row, count) for everything that a token has.
template <class Move>
void each(const KvLayout& layout, uint32_t token, Move move) {
  const uint32_t column = token % TILE;
  const size_t number = number_bytes(layout.kind), head = layout.head_dim * number, side = layout.kv_heads * head;
  if (layout.kind == CacheKind::int4) return each_int4(layout, column, move);
  for (uint32_t h = 0; h < layout.kv_heads; h++) {
    for (uint32_t d = 0; d < layout.head_dim; d++) {
      move(layout.keys(h) + key_at(layout, column, d), h * head + d * number, number);
      move(layout.values(h) + value_at(layout, column, d), side + h * head + d * number, number);
    }
    if (layout.kind != CacheKind::int8) continue;
    const size_t scales = layout.part() - TILE * sizeof(float) + column * sizeof(float), one = sizeof(float);
    move(layout.keys(h) + scales, 2 * side + h * one, one);
    move(layout.values(h) + scales, 2 * side + (layout.kv_heads + h) * one, one);
  }
}

}  // namespace

size_t KvLayout::row() const {
  if (kind == CacheKind::int4) return size_t(kv_heads) * int4_dims(head_dim) * 5 / 4;
  const size_t scales = kind == CacheKind::int8 ? sizeof(float) : 0;
  return 2 * size_t(kv_heads) * (head_dim * number_bytes(kind) + scales);
}

void KvLayout::read(uint32_t token, const uint8_t* block, uint8_t* row) const {
  each(*this, token, [&](size_t from, size_t to, size_t bytes) { std::memcpy(row + to, block + from, bytes); });
}

void KvLayout::write(uint32_t token, const uint8_t* row, uint8_t* block) const {
  each(*this, token, [&](size_t to, size_t from, size_t bytes) { std::memcpy(block + to, row + from, bytes); });
}

}  // namespace edgeloop
