// Ops that make each number of the numbers at its place.
#include "declared.h"

namespace edgeloop {

namespace {

// one(x, count, y, row, column) for the columns of each row.
template <class One>
void each_row(const Piece& piece, const Node& node, One one) {
  const Value x = piece.at(node.reads[0]), y = piece.at(node.y);
  const uint32_t from = piece.from(), count = piece.to(piece.size(node.y)) - from;
  for (uint32_t m = piece.first; m < piece.last; m++) one(x.row(m) + from, int32_t(count), y.row(m) + from, m, from);
}

}  // namespace

void act(const Piece& piece, const Node& node) {
  const auto function = piece.kernels().act[node.op->function];
  each_row(piece, node, [&](const float* x, int32_t n, float* y, uint32_t, uint32_t) { function(x, n, y); });
}

void add(const Piece& piece, const Node& node) {
  const Value b = piece.at(node.reads[1]);
  each_row(piece, node, [&](const float* a, int32_t n, float* y, uint32_t m, uint32_t from) {
    piece.kernels().add(a, b.row(m) + from, n, y);
  });
}

void mul(const Piece& piece, const Node& node) {
  const Value b = piece.at(node.reads[1]);
  const uint32_t part = piece.size(node.reads[0]) / piece.size(node.reads[1]);
  each_row(piece, node, [&](const float* a, int32_t n, float* y, uint32_t m, uint32_t from) {
    if (part == 1) return piece.kernels().mul(a, b.row(m) + from, n, y);
    for (uint32_t done = 0; done < uint32_t(n); done += part)
      piece.kernels().scale(a + done, int32_t(part), b.row(m)[(from + done) / part], nullptr, 0.0f, y + done);
  });
}

void scale(const Piece& piece, const Node& node) {
  const file::Op& op = *node.op;
  each_row(piece, node, [&](const float* x, int32_t n, float* y, uint32_t m, uint32_t from) {
    const float* w = piece.vector(op, 0, m);
    piece.kernels().scale(x, n, op.factors[0], w ? w + from : nullptr, op.factors[1], y);
  });
}

void softcap(const Piece& piece, const Node& node) {
  each_row(piece, node, [&](const float* x, int32_t n, float* y, uint32_t, uint32_t) {
    piece.kernels().softcap(x, n, node.op->factors[0], y);
  });
}

}  // namespace edgeloop
