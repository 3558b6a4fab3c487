#include "declared.h"

namespace edgeloop {

Value Piece::at(uint32_t value) const {
  const Lies& lies = pass.plan.values[value];
  if (lies.place != Place::scratch) return pass.value_of(value, worker, narrow);
  float* start = pass.space.scratch[size_t(worker)].data();
  if (!scratch_width) return {start + lies.offset, 0};
  // So that row `first`, column `begin` is the beginning.
  const ptrdiff_t stride = scratch_width;
  return {start + (ptrdiff_t(lies.offset) - ptrdiff_t(first) * stride - ptrdiff_t(begin)), stride};
}

const float* Piece::vector(const file::Op& op, uint32_t which, uint32_t row) const {
  const uint32_t number = op.weights[which];
  if (number == file::NONE) return nullptr;
  return pass.model.vector(number, Pass::depth(op, lane_depth(row)));
}

const OpFunction OPS[NODE_KINDS] = {embed, norm,    linear, rotate, nullptr, nullptr, nullptr,  act,  add,    mul,
                                    scale, softcap, concat, slice,  shift,   nullptr, quantize, keys, values, low};

}  // namespace edgeloop
