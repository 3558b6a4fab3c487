// Products with matrices, and what they need of their inputs: int8 codes, and the A side of deltas.
#include <algorithm>

#include "declared.h"

namespace edgeloop {

namespace {

// Rows of activations, as a product takes them.
struct Inputs {
  Value x{};      // where they are floats
  Codes codes{};  // where they are codes
  int32_t groups = 0, columns = 0;
  bool coded = false;

  Inputs(const Piece& piece, uint32_t value, uint32_t number) : columns(int32_t(piece.size(value))), coded(number != file::NONE) {
    if (!coded) {
      x = piece.at(value);
      return;
    }
    codes = piece.pass.codes_of(number, piece.worker, piece.narrow);
    groups = group_count(columns, int32_t(piece.pass.program.codes[number].group));
  }

  // The piece's tiles of w times rows first … last − 1.
  void times(const Piece& piece, const Matrix& w, uint32_t first, uint32_t last, const Output& out) const {
    const int32_t rows = int32_t(last - first), first_tile = int32_t(piece.begin) / LANES;
    const int32_t last_tile = (int32_t(piece.end) + LANES - 1) / LANES;
    if (!coded) return piece.kernels().product_floats(w, x.row(first), x.stride, rows, first_tile, last_tile, out);
    const Codes from{codes.codes + size_t(first) * size_t(padded(columns)), codes.scales + size_t(first) * size_t(groups),
        codes.sums + size_t(first) * size_t(groups)};
    piece.kernels().product_codes(w, from, rows, first_tile, last_tile, out);
  }
};

// each(first row, last row, depth) for rows of a piece that have the same of what differs between depths.
template <class Each>
void each_depth(const Piece& piece, bool differs, Each each) {
  if (!differs) return each(piece.first, piece.last, 0u);
  for (const Run& run : piece.pass.rows.runs) {
    const uint32_t first = std::max(run.first, piece.first), last = std::min(run.last, piece.last);
    if (first < last) each(first, last, run.depth);
  }
}

// y + B (A x) on rows first … last − 1, then times the delta's scale, then the bias.
void add_delta(const Piece& piece, const Value& y, const Inputs& low, const Delta& delta, const float* bias,
    uint32_t first, uint32_t last) {
  const Kernels& kernels = piece.kernels();
  low.times(piece, delta.b, first, last, {y.row(first), y.stride, nullptr, true});
  const uint32_t from = piece.from();
  const int32_t columns = int32_t(piece.end - from);
  for (uint32_t m = first; m < last; m++) {
    float* row = y.row(m) + from;
    if (delta.scale) kernels.mul(row, delta.scale + from, columns, row);
    if (bias) kernels.add(row, bias + from, columns, row);
  }
}

}  // namespace

void quantize(const Piece& piece, const Node& node) {
  const CodesOf& of = piece.pass.program.codes[node.codes];
  const Codes codes = piece.pass.codes_of(node.codes, piece.worker, piece.narrow);
  const uint32_t size = piece.size(of.value), from = piece.from(), to = piece.to(size), first_group = from / of.group;
  const size_t wide = size_t(padded(int32_t(size))), groups = size_t(group_count(int32_t(size), int32_t(of.group)));
  const Value x = piece.at(of.value);
  for (uint32_t m = piece.first; m < piece.last; m++)
    piece.kernels().quantize(x.row(m) + from, int32_t(to - from), int32_t(of.group), of.zero,
        codes.codes + m * wide + from, codes.scales + m * groups + first_group, codes.sums + m * groups + first_group);
}

void low(const Piece& piece, const Node& node) {
  const Inputs x(piece, node.reads[0], node.codes);
  const Value y = piece.at(node.y);
  each_depth(piece, node.op->at == file::NONE, [&](uint32_t first, uint32_t last, uint32_t lane) {
    const Delta delta = piece.pass.model.delta(node.op->weights[0], node.part, Pass::depth(*node.op, lane));
    x.times(piece, delta.a, first, last, {y.row(first), y.stride, nullptr, false});
  });
}

void linear(const Piece& piece, const Node& node) {
  const Model& model = piece.pass.model;
  const uint32_t number = node.op->weights[0];
  const Inputs x(piece, node.reads[0], node.codes);
  const Value y = piece.at(node.y);
  // W x: of all rows at once where W is one for all depths.
  const bool copied = !node.only.data, own = node.op->at == file::NONE;
  each_depth(piece, own && copied, [&](uint32_t first, uint32_t last, uint32_t lane) {
    const uint32_t depth = Pass::depth(*node.op, lane);
    const Matrix w = copied ? model.part(number, node.part, depth) : node.only;
    const float* bias = copied ? model.bias(number, node.part, depth) : node.bias;
    x.times(piece, w, first, last, {y.row(first), y.stride, node.low ? nullptr : bias, false});
  });
  if (!node.low) return;
  const Inputs low(piece, node.reads[1], node.low_codes);
  each_depth(piece, own, [&](uint32_t first, uint32_t last, uint32_t lane) {
    const uint32_t depth = Pass::depth(*node.op, lane);
    const float* bias = copied ? model.bias(number, node.part, depth) : node.bias;
    add_delta(piece, y, low, model.delta(number, node.part, depth), bias, first, last);
  });
}

}  // namespace edgeloop
