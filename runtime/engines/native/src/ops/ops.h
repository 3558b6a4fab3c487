// The ops of a program on a piece of a pass: a function each, by its number in a program.
#pragma once

#include "../pass.h"

namespace edgeloop {

// A piece of a step: rows first … last − 1, and of the values that are cut into columns begin … end − 1.
struct Piece {
  const Pass& pass;
  int worker;
  bool narrow;                      // does every worker compute all rows for itself?
  uint32_t first, last;
  uint32_t begin = 0, end = 0;      // 0, 0: whole rows
  uint32_t scratch_width = 0;       // of values within the piece; 0: one row at a time

  const Kernels& kernels() const { return pass.kernels; }
  uint32_t size(uint32_t value) const { return pass.program.sizes[value]; }
  // The columns of a value of `size` numbers that are meant.
  uint32_t from() const { return begin; }
  uint32_t to(uint32_t size) const { return end ? end : size; }
  Value at(uint32_t value) const;
  // Does this worker write what there is one of? Rows of a narrow pass are everybody's.
  bool writes() const { return !narrow || end || worker == 0; }
  uint32_t lane_depth(uint32_t row) const { return pass.rows.lanes[pass.rows.lane_of[row]].depth; }
  // Row of a vector that an op names, at the depth of a row of the pass.
  const float* vector(const file::Op& op, uint32_t which, uint32_t row) const;
};

using OpFunction = void (*)(const Piece&, const Node&);
extern const OpFunction OPS[NODE_KINDS];  // null for those of ATTEND and EXPERTS steps

// Attention of rows first … last − 1 of one lane, for the query heads of KV head `head`. `scratch` holds the kernel's
// floats, and those of attend_floats.
void attend(const Pass& pass, const Node& node, int worker, bool narrow, const Lane& lane, uint32_t first,
    uint32_t last, uint32_t head, float* scratch);
constexpr uint32_t ATTEND_ROWS = 16;  // rows of a lane that are attended to together
size_t attend_floats(const Program& program, size_t longest);

// One row through its experts.
void experts(const Pass& pass, const Node& node, int worker, bool narrow, uint32_t row, float* scratch);
size_t experts_floats(const Program& program, const Node& node);

}  // namespace edgeloop
