// A row through the few of many MLPs that its scores choose.
#include <algorithm>
#include <vector>

#include "ops.h"

namespace edgeloop {

namespace {

// What a worker needs beside a row: laid out one after the other in its scratch.
struct Room {
  size_t shares, chosen, inner, half, sum, one, codes, scales, sums, floats;

  Room(const Program& program, const Node& node) {
    const file::Op& op = *node.op;
    const file::Matrix &up = program.model->matrices[op.weights[0]], &down = program.model->matrices[op.weights[1]];
    const size_t rows = program.model->part_record(op.weights[0], 0).rows, width = program.sizes[node.y];
    const size_t columns = std::max(up.columns, down.columns);
    size_t used = 0;
    const auto take = [&](size_t count) {
      const size_t start = used;
      used += (count + 15) / 16 * 16;
      return start;
    };
    shares = take(program.sizes[node.reads[1]]);
    chosen = take(op.numbers[0]);
    inner = take(rows);
    half = take(rows);
    sum = take(width);
    one = take(width);
    codes = take((columns + 15) / 16 * 16 / sizeof(float));
    scales = take(columns);
    sums = take(columns);
    floats = used;
  }
};

// x [1, columns of the matrix] times all rows of one expert.
void multiply(const Pass& pass, uint32_t matrix, uint32_t expert, const float* x, const Room& room, float* scratch,
    float* y) {
  const Matrix w = pass.model.whole(matrix, expert);
  const Output out{y, 0, nullptr, false};
  if (pass.program.int8 && (w.kind == Kind::int8 || w.kind == Kind::int4)) {
    const Codes codes{reinterpret_cast<int8_t*>(scratch + room.codes), scratch + room.scales,
        reinterpret_cast<int32_t*>(scratch + room.sums)};
    pass.kernels.quantize(x, w.columns, w.group, zero_code(w.kind), codes.codes, codes.scales, codes.sums);
    pass.kernels.product_codes(w, codes, 1, 0, tiles_of(w), out);
  } else {
    pass.kernels.product_floats(w, x, 0, 1, 0, tiles_of(w), out);
  }
}

}  // namespace

size_t experts_floats(const Program& program, const Node& node) { return Room(program, node).floats; }

void experts(const Pass& pass, const Node& node, int worker, bool narrow, uint32_t row, float* scratch) {
  const file::Op& op = *node.op;
  const Kernels& kernels = pass.kernels;
  const Room room(pass.program, node);
  const float* x = pass.value_of(node.reads[0], worker, narrow).row(row);
  const float* scores = pass.value_of(node.reads[1], worker, narrow).row(row);
  float* y = pass.value_of(node.y, worker, narrow).row(row);
  const uint32_t count = pass.program.sizes[node.reads[1]], top = op.numbers[0];
  const int32_t width = int32_t(pass.program.sizes[node.y]);

  float* shares = scratch + room.shares;
  uint32_t* chosen = reinterpret_cast<uint32_t*>(scratch + room.chosen);
  kernels.softmax(scores, int32_t(count), shares);
  float total = 0;
  for (uint32_t i = 0; i < top; i++) {  // the largest first; of equal ones the first
    uint32_t best = file::NONE;
    for (uint32_t e = 0; e < count; e++) {
      if (std::find(chosen, chosen + i, e) != chosen + i) continue;
      if (best == file::NONE || shares[e] > shares[best]) best = e;
    }
    chosen[i] = best;
    total += shares[best];
  }
  std::sort(chosen, chosen + top);

  float *sum = scratch + room.sum, *inner = scratch + room.inner, *half = scratch + room.half;
  float* one = scratch + room.one;
  std::fill_n(sum, width, 0.0f);
  for (uint32_t i = 0; i < top; i++) {
    const uint32_t expert = chosen[i];
    const int32_t rows = int32_t(pass.model.part_record(op.weights[0], 0).rows);
    multiply(pass, op.weights[0], expert, x, room, scratch, inner);
    const int32_t wide = op.flags & file::GATED ? rows / 2 : rows;
    kernels.act[op.function](inner, wide, half);
    if (op.flags & file::GATED) kernels.mul(half, inner + wide, wide, half);
    multiply(pass, op.weights[1], expert, half, room, scratch, one);
    const float share = op.flags & file::RENORMALISED ? shares[expert] / total : shares[expert];
    kernels.add_scaled(one, width, share, sum);
  }
  std::copy_n(sum, width, y);
}

}  // namespace edgeloop
