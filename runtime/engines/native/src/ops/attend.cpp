// Attention: which tokens a row sees, and of which slots.
#include <algorithm>

#include "ops.h"

namespace edgeloop {

namespace {

// Tokens first[i] … last[i] − 1 that rows of a lane see.
struct Seen {
  int32_t first[ATTEND_ROWS], last[ATTEND_ROWS];
};

// `before`: tokens ahead of the lane's rows.
Seen seen(const Lane& lane, uint32_t before, uint32_t row, uint32_t rows, uint32_t mask, uint32_t window) {
  Seen found;
  for (uint32_t i = 0; i < rows; i++) {
    const uint32_t token = before + row + i - lane.first;
    found.first[i] = int32_t(window && token + 1 > window ? token + 1 - window : 0);
    const uint32_t all = before + lane.rows;
    const uint32_t ahead = mask == file::BOTH ? all : mask == file::PREFIX ? std::min(lane.prefix, all) : 0;
    found.last[i] = int32_t(std::max(token + 1, ahead));
  }
  return found;
}

}  // namespace

size_t attend_floats(const Program& program, size_t longest) {
  size_t beside = 0;
  uint32_t widest = 0;  // head
  for (const Node& node : program.nodes) {
    const bool twice = node.kind == file::ATTEND_TWICE;
    if (!twice && node.kind != file::ATTEND && node.kind != file::ATTEND_LEARNED) continue;
    const auto& numbers = node.op->numbers;
    widest = std::max(widest, numbers[2]);
    if (twice) beside = std::max(beside, size_t(ATTEND_ROWS) * (numbers[0] / numbers[1]) * numbers[2]);
  }
  return (attend_scratch(int32_t(longest), int32_t(widest)) + 15) / 16 * 16 + beside;
}

void attend(const Pass& pass, const Node& node, int worker, bool narrow, const Lane& lane, uint32_t first,
    uint32_t last, uint32_t head, float* scratch) {
  const file::Op& op = *node.op;
  const uint32_t heads = op.numbers[0] / op.numbers[1], dim = op.numbers[2], rows = last - first;
  const Value q = pass.value_of(node.reads[0], worker, narrow), y = pass.value_of(node.y, worker, narrow);
  Attention call;
  call.q = q.row(first) + head * heads * dim;
  call.y = y.row(first) + head * heads * dim;
  call.q_stride = q.stride;
  call.y_stride = y.stride;
  call.rows = int32_t(rows);
  call.heads = int32_t(heads);
  call.head_dim = int32_t(dim);
  call.scale = op.factors[0];
  call.cap = op.kind == file::ATTEND ? op.factors[1] : 0.0f;
  call.scratch = scratch;
  const auto run = [&](const Held& held, const Seen& seen) {
    call.first = seen.first;
    call.last = seen.last;
    call.cached = {held.blocks, held.layout.keys(head), held.layout.values(head)};
    pass.kernels.attend[int(held.layout.kind)](call);
  };
  if (op.kind == file::ATTEND_LEARNED) {
    const Held held = pass.held(node.memory, lane);
    Seen all;
    std::fill_n(all.first, rows, 0);
    std::fill_n(all.last, rows, int32_t(pass.what.learned[node.memory].count));
    return run(held, all);
  }
  if (op.kind == file::ATTEND) {
    const Held held = pass.held(node.memory, lane);
    return run(held, seen(lane, held.before, first, rows, op.numbers[5], op.numbers[4]));
  }
  const Held own = pass.held(node.memory, lane);
  if (lane.depth == 0) return run(own, seen(lane, own.before, first, rows, file::CAUSAL, 0));
  run(own, seen(lane, own.before, first, rows, file::CAUSAL, op.numbers[4]));
  const size_t beside = (attend_scratch(int32_t(own.before + last - lane.first), int32_t(dim)) + 15) / 16 * 16;
  const Value far{scratch + beside, ptrdiff_t(heads * dim)}, gate = pass.value_of(node.reads[3], worker, narrow);
  float* near = call.y;
  call.y = far.start;
  call.y_stride = far.stride;
  run(pass.held(node.memory, lane, true), seen(lane, own.before, first, rows, file::CAUSAL, 0));
  for (uint32_t m = 0; m < rows; m++)
    for (uint32_t h = 0; h < heads; h++) {
      float* into = near + ptrdiff_t(m) * y.stride + h * dim;
      pass.kernels.blend(far.row(m) + h * dim, into, int32_t(dim), gate.row(first + m)[head * heads + h], into);
    }
}

}  // namespace edgeloop
