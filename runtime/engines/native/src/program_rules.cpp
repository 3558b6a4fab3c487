// What each op of a stage must be: its operands, its sizes, its weights. The rules are those of runtime/model/sizes.py and
// op_checks.py. Those of attention are in program_attention.cpp.
#include "error.h"
#include "program_reader.h"

namespace edgeloop {

using file::NONE, file::Op;

namespace {

constexpr uint32_t MAX_EXPERTS = 1u << 12;

}  // namespace

const Reader::OpRule Reader::OPS[] = {
    {"embed", &Reader::embed},
    {"norm", &Reader::norm},
    {"linear", &Reader::linear},
    {"rotate", &Reader::rotate},
    {"attend", &Reader::attend},
    {"attend_twice", &Reader::attend_twice},
    {"attend_learned", &Reader::attend_learned},
    {"act", &Reader::same},
    {"add", &Reader::sum},
    {"mul", &Reader::mul},
    {"scale", &Reader::scale},
    {"softcap", &Reader::same},
    {"concat", &Reader::concat},
    {"slice", &Reader::slice},
    {"shift", &Reader::shift},
    {"experts", &Reader::experts},
};

const file::Vector* Reader::vector(const Op& op, uint32_t number, uint32_t wide) {
  if (number == NONE) return nullptr;
  want(number < model_.vectors.count, "vector %u of %zu", number, model_.vectors.count);
  const file::Vector& found = model_.vectors[number];
  want(found.size == wide, "vector %u is %u wide, wanted %u", number, found.size, wide);
  if (found.rows) depths(op, found.rows);
  return &found;
}

void Reader::depths(const Op& op, uint32_t count) {
  if (op.at != NONE) return want(op.at < count, "it is at depth %u of %u of a weight", op.at, count);
  want(program_.role == Role::block || program_.role == Role::fill,
      "a weight differs between depths, and outside of the loop there are none");
  want(count >= model_.schedule.count && model_.header().deeper == NONE, "a weight is of %u depths, the loop of %zu",
      count, model_.schedule.count);
  program_.per_depth = true;
}

uint32_t Reader::codes(uint32_t value, uint32_t storage, uint32_t group) {
  const bool coded = storage == file::I8 || storage == file::I4;
  if (!coded || !program_.int8) return NONE;
  const int32_t zero = zero_code(Kind(storage));
  const auto key = std::make_tuple(value, group, zero);
  const auto found = codes_.find(key);
  if (found != codes_.end()) return found->second;
  const uint32_t number = codes_[key] = uint32_t(program_.codes.size());
  program_.codes.push_back({value, group, zero});
  Node node;
  node.kind = QUANTIZE;
  node.reads = {value};
  node.codes = number;
  add(std::move(node));
  return number;
}

void Reader::embed(const Op& op) {
  reads(op, 1);
  const file::Matrix& table = matrix(op.weights[0]);
  want(table.parts == 1 && table.copies == 1 && !model_.part_record(op.weights[0], 0).rank,
      "rows of no plain matrix are looked up");
  gives(op, table.columns);
  const uint32_t value = operand(op, 0);
  want(value < program_.hosts.size(), "value %u holds no ids", value);
  const file::Header& h = model_.header();
  const uint32_t wanted[] = {h.vocab_size, h.context_length, h.token_types ? h.token_types : 1};
  const uint32_t rows = model_.part_record(op.weights[0], 0).rows;
  want(rows >= wanted[program_.hosts[value]], "a table of %u rows, wanted %u", rows, wanted[program_.hosts[value]]);
  add_op(op);
}

void Reader::norm(const Op& op) {
  reads(op, 1);
  gives(op, x(op));
  const uint32_t groups = op.numbers[0];
  want(op.function <= file::LAYER && groups >= 1 && x(op) % groups == 0, "a norm of kind %u over %u groups of %u",
      op.function, groups, x(op));
  want(op.factors[0] >= 0 && op.factors[0] <= 1, "eps is %g", double(op.factors[0]));
  vector(op, op.weights[0], x(op) / groups);
  vector(op, op.weights[1], x(op) / groups);
  add_op(op);
}

void Reader::linear(const Op& op) {
  reads(op, 1);
  const file::Matrix& m = matrix(op.weights[0]);
  want(x(op) == m.columns, "x is %u wide, the matrix %u", x(op), m.columns);
  const uint32_t first = op.numbers[0];
  want(first < m.parts && op.writes <= m.parts - first, "parts %u … of %u", first, m.parts);
  if (m.copies > 1) depths(op, m.copies);
  const uint32_t in = operand(op, 0), coded = codes(in, m.storage, m.group);
  for (uint32_t i = 0; i < op.writes; i++) {
    const file::Part& part = model_.part_record(op.weights[0], first + i);
    const uint32_t y = operand(op, op.reads + i);
    want(size(y) == part.rows, "value %u is %u wide, the part %u", y, size(y), part.rows);
    Node node;
    node.kind = file::LINEAR;
    node.op = &op;
    node.reads = {in};
    node.y = y;
    node.codes = coded;
    node.part = first + i;
    if (m.copies == 1) {
      node.only = model_.part(op.weights[0], first + i, 0);
      node.bias = model_.bias(op.weights[0], first + i, 0);
    }
    if (part.rank) {
      depths(op, m.depths);
      Node low;
      low.kind = LOW;
      low.op = &op;
      low.reads = {in};
      low.codes = codes(in, part.storage, m.columns);
      low.part = first + i;
      low.y = uint32_t(program_.sizes.size());
      program_.sizes.push_back(part.rank);
      node.low = true;
      node.reads.push_back(low.y);
      add(std::move(low));
      node.low_codes = codes(node.reads[1], part.storage, part.rank);
    }
    add(std::move(node));
  }
}

void Reader::rotate(const Op& op) {
  reads(op, 1);
  gives(op, x(op));
  tokens();
  const uint32_t heads = op.numbers[0], by = op.numbers[1];
  want(heads >= 1 && x(op) % heads == 0 && by < model_.rotations.count, "%u heads of %u, rotation %u", heads, x(op),
      by);
  want(model_.rotations[by].dims <= x(op) / heads, "it turns %u dims of heads of %u", model_.rotations[by].dims,
      x(op) / heads);
  add_op(op);
}

void Reader::same(const Op& op) {
  reads(op, 1);
  gives(op, x(op));
  want(op.kind != file::ACT || op.function < file::FUNCTIONS, "there is no function %u", op.function);
  want(op.kind != file::SOFTCAP || op.factors[0] > 0, "cap is %g", double(op.factors[0]));
  add_op(op);
}

void Reader::sum(const Op& op) {
  reads(op, 2);
  want(x(op) == x(op, 1), "a is %u wide, b %u", x(op), x(op, 1));
  gives(op, x(op));
  add_op(op);
}

void Reader::mul(const Op& op) {
  reads(op, 2);
  want(x(op) % x(op, 1) == 0, "a is %u wide, b %u", x(op), x(op, 1));
  gives(op, x(op));
  add_op(op);
}

void Reader::scale(const Op& op) {
  reads(op, 1);
  gives(op, x(op));
  vector(op, op.weights[0], x(op));
  add_op(op);
}

void Reader::concat(const Op& op) {
  uint64_t wide = 0;
  for (uint32_t i = 0; i < op.reads; i++) wide += x(op, i);
  want(wide <= file::MAX_SIZE, "it makes %llu numbers of a row", (unsigned long long)wide);
  gives(op, uint32_t(wide));
  add_op(op);
}

void Reader::slice(const Op& op) {
  reads(op, 1);
  want(op.numbers[0] < op.numbers[1] && op.numbers[1] <= x(op), "columns %u to %u of %u", op.numbers[0],
      op.numbers[1], x(op));
  gives(op, op.numbers[1] - op.numbers[0]);
  add_op(op);
}

void Reader::shift(const Op& op) {
  reads(op, 1);
  gives(op, x(op));
  want(program_.role != Role::head && program_.role != Role::fill, "it reads other tokens");
  const file::Range kept = program_.kept();
  want(op.numbers[0] == shifts_ && shifts_ < kept.count, "kept row %u, wanted %u of %u", op.numbers[0], shifts_,
      kept.count);
  want(model_.kept[kept.first + shifts_] == x(op), "kept row %u is %u wide, x %u", shifts_,
      model_.kept[kept.first + shifts_], x(op));
  shifts_++;
  add_op(op);
}

void Reader::experts(const Op& op) {
  reads(op, 2);
  const file::Matrix &up = matrix(op.weights[0]), &down = matrix(op.weights[1]);
  const uint32_t count = x(op, 1), halves = op.flags & file::GATED ? 2 : 1;
  want(count <= MAX_EXPERTS && op.numbers[0] >= 1 && op.numbers[0] <= count && op.function < file::FUNCTIONS,
      "the best %u of %u experts, function %u",
       op.numbers[0], count, op.function);
  want(up.parts == 1 && down.parts == 1 && up.copies == count && down.copies == count && !up.bias && !down.bias,
      "matrices of %u and %u experts, wanted %u plain ones",
       up.copies, down.copies, count);
  const file::Part &in = model_.part_record(op.weights[0], 0), &out = model_.part_record(op.weights[1], 0);
  want(!in.rank && !out.rank && in.rows % halves == 0 && up.columns == x(op) && down.columns == in.rows / halves
      && out.rows == x(op),
       "experts of [%u, %u] and [%u, %u] for rows of %u", in.rows, up.columns, out.rows, down.columns, x(op));
  gives(op, x(op));
  add_op(op);
}

}  // namespace edgeloop
