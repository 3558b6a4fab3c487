// K and V of new rows, into the blocks of their lanes.
#include "declared.h"

namespace edgeloop {

namespace {

// one(row of the pass, head, block, token) for each head of the columns of each row.
template <class One>
void each_head(const Piece& piece, const Node& node, One one) {
  if (!piece.writes()) return;
  const Pass& pass = piece.pass;
  const uint32_t size = piece.size(node.reads[0]), head_dim = pass.program.memories[node.memory].head_dim;
  for (uint32_t m = piece.first; m < piece.last; m++) {
    const Lane& lane = pass.rows.lanes[pass.rows.lane_of[m]];
    const Held held = pass.held(node.memory, lane);
    const uint32_t token = held.before + m - lane.first;
    uint8_t* block = static_cast<uint8_t*>(const_cast<void*>(held.blocks[token / file::TILE]));
    for (uint32_t c = piece.from(); c < piece.to(size); c += head_dim) one(held, m, c, block, token % file::TILE);
  }
}

}  // namespace

void keys(const Piece& piece, const Node& node) {
  const Value k = piece.at(node.reads[0]);
  each_head(piece, node, [&](const Held& held, uint32_t m, uint32_t c, uint8_t* block, uint32_t column) {
    const KvLayout& layout = held.layout;
    piece.kernels().store_key[int(layout.kind)](k.row(m) + c, int32_t(layout.head_dim), int32_t(column),
        block + layout.keys(c / layout.head_dim));
  });
}

void values(const Piece& piece, const Node& node) {
  const Value v = piece.at(node.reads[0]);
  each_head(piece, node, [&](const Held& held, uint32_t m, uint32_t c, uint8_t* block, uint32_t row) {
    const KvLayout& layout = held.layout;
    piece.kernels().store_value[int(layout.kind)](v.row(m) + c, int32_t(layout.head_dim), int32_t(row),
        block + layout.values(c / layout.head_dim));
  });
}

}  // namespace edgeloop
