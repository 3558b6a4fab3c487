// Ops that look up, norm, turn and rearrange the numbers of a row.
#include <cstring>

#include "declared.h"

namespace edgeloop {

void embed(const Piece& piece, const Node& node) {
  const Pass& pass = piece.pass;
  const Matrix table = pass.model.whole(node.op->weights[0], 0);
  const auto& ids = pass.rows.hosts[pass.program.hosts[node.reads[0]]];
  const Value y = piece.at(node.y);
  for (uint32_t m = piece.first; m < piece.last; m++)
    pass.kernels.matrix_row(table, int32_t(ids[m]), node.op->factors[0], y.row(m));
}

void norm(const Piece& piece, const Node& node) {
  const file::Op& op = *node.op;
  const uint32_t size = piece.size(node.y), part = size / op.numbers[0];
  const Value x = piece.at(node.reads[0]), y = piece.at(node.y);
  for (uint32_t m = piece.first; m < piece.last; m++) {
    const float *w = piece.vector(op, 0, m), *b = piece.vector(op, 1, m);
    for (uint32_t c = piece.from(); c < piece.to(size); c += part) {
      if (op.function == file::LAYER) {
        piece.kernels().layer_norm(x.row(m) + c, int32_t(part), op.factors[0], w, b, y.row(m) + c);
      } else {
        piece.kernels().rms_norm(x.row(m) + c, int32_t(part), op.factors[0], w, y.row(m) + c);
        if (b) piece.kernels().add(y.row(m) + c, b, int32_t(part), y.row(m) + c);
      }
    }
  }
}

void rotate(const Piece& piece, const Node& node) {
  const file::Op& op = *node.op;
  const uint32_t size = piece.size(node.y), head = size / op.numbers[0], by = op.numbers[1];
  const int32_t dims = int32_t(piece.pass.model.rotations[by].dims);
  const auto turn_head = op.flags & file::PAIRS ? piece.kernels().rotate_pairs : piece.kernels().rotate_halves;
  const Value x = piece.at(node.reads[0]), y = piece.at(node.y);
  for (uint32_t m = piece.first; m < piece.last; m++) {
    const float* cosines = piece.pass.turns.at(by, piece.pass.rows.positions[m]);
    for (uint32_t c = piece.from(); c < piece.to(size); c += head)
      turn_head(x.row(m) + c, int32_t(head), dims, cosines, cosines + dims / 2, y.row(m) + c);
  }
}

void concat(const Piece& piece, const Node& node) {
  const Value y = piece.at(node.y);
  uint32_t start = 0;
  for (uint32_t value : node.reads) {
    const Value x = piece.at(value);
    for (uint32_t m = piece.first; m < piece.last; m++)
      std::memcpy(y.row(m) + start, x.row(m), piece.size(value) * sizeof(float));
    start += piece.size(value);
  }
}

void slice(const Piece& piece, const Node& node) {
  const Value x = piece.at(node.reads[0]), y = piece.at(node.y);
  for (uint32_t m = piece.first; m < piece.last; m++)
    std::memcpy(y.row(m), x.row(m) + node.op->numbers[0], piece.size(node.y) * sizeof(float));
}

void shift(const Piece& piece, const Node& node) {
  const Pass& pass = piece.pass;
  const file::Range kept = pass.program.kept();
  const uint32_t size = piece.size(node.y);
  size_t start = 0;  // of this op's row among those that are kept
  for (uint32_t i = 0; i < node.op->numbers[0]; i++) start += pass.model.kept[kept.first + i];
  const Value x = piece.at(node.reads[0]), y = piece.at(node.y);
  for (uint32_t m = piece.first; m < piece.last; m++) {
    const Lane& lane = pass.rows.lanes[pass.rows.lane_of[m]];
    const float* before = m > lane.first ? x.row(m - 1) : lane.before ? lane.before + start : nullptr;
    before ? std::memcpy(y.row(m), before, size * sizeof(float)) : std::memset(y.row(m), 0, size * sizeof(float));
    if (m + 1 == lane.first + lane.rows && piece.writes())
      std::memcpy(lane.after + start, x.row(m), size * sizeof(float));
  }
}

}  // namespace edgeloop
