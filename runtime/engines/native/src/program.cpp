#include "program.h"

#include <cmath>
#include <map>
#include <tuple>

#include "error.h"

namespace edgeloop {

using file::NONE, file::Op;

namespace {

constexpr uint32_t MAX_VALUES = 1u << 16;   // of a stage
constexpr uint32_t MAX_EXPERTS = 1u << 12;
constexpr const char* ROLES[] = {"prologue", "block", "fill", "epilogue", "head"};
constexpr const char* KINDS[] = {"embed", "norm", "linear", "rotate", "attend", "attend_twice", "attend_learned", "act", "add",
                                 "mul", "scale", "softcap", "concat", "slice", "shift", "experts"};
static_assert(sizeof KINDS / sizeof *KINDS == file::OP_KINDS, "");

// Reads a stage op by op. The rules are those of runtime/model/sizes.py and op_checks.py.
class Reader {
 public:
  Reader(const Model& model, uint32_t number, Role role, bool int8) : model_(model), number_(number) {
    program_.model = &model;
    program_.role = role;
    program_.int8 = int8;
  }

  Program read() {
    want(number_ < model_.stages.count, "it is stage %u of %zu", number_, model_.stages.count);
    stage_ = &model_.stages[number_];
    within(stage_->first_op, stage_->ops, model_.ops.count, "ops");
    within(stage_->first_value, stage_->values, model_.values.count, "values");
    within(stage_->first_output, stage_->outputs, model_.operands.count, "outputs");
    want(stage_->values <= MAX_VALUES && stage_->inputs <= stage_->values, "%u values, %u of them inputs", stage_->values, stage_->inputs);
    read_inputs();
    for (at_ = 0; at_ < stage_->ops; at_++) read_op(model_.ops[stage_->first_op + at_]);
    op_ = nullptr;
    want(next_ == stage_->values, "its ops write %u of %u values", next_, stage_->values);
    for (uint32_t i = 0; i < stage_->outputs; i++) {
      const uint32_t value = model_.operands[stage_->first_output + i];
      want(value < next_ && size(value), "its output %u is value %u", i, value);
      program_.outputs.push_back(value);
    }
    check_outputs();
    return std::move(program_);
  }

 private:
  using Rule = void (Reader::*)(const Op&);

  template <class... Values>
  void want(bool good, const char* format, Values... values) const {
    if (good) return;
    char text[EL_ERROR_SIZE];
    std::snprintf(text, sizeof text, format, values...);
    if (op_)
      fail(EL_FORMAT, "%s op %u (%s): %s", ROLES[int(program_.role)], at_, op_->kind < file::OP_KINDS ? KINDS[op_->kind] : "?", text);
    fail(EL_FORMAT, "%s: %s", ROLES[int(program_.role)], text);
  }
  void within(uint32_t first, uint32_t count, size_t size, const char* what) const {
    want(first <= size && count <= size - first, "%u %s from %u on, the file has %zu", count, what, first, size);
  }

  uint32_t size(uint32_t value) const { return program_.sizes[value]; }
  uint32_t operand(const Op& op, uint32_t i) const { return model_.operands[op.first_operand + i]; }

  void read_inputs() {
    const bool prologue = program_.role == Role::prologue;
    for (uint32_t i = 0; i < stage_->values; i++) {
      const uint32_t wide = model_.values[stage_->first_value + i];
      const bool ids = prologue && i < stage_->inputs;
      want(ids ? wide == 0 : wide >= 1 && wide <= file::MAX_SIZE, "value %u has the size %u", i, wide);
      program_.sizes.push_back(wide);
    }
    program_.inputs = next_ = stage_->inputs;
    if (prologue) {
      within(stage_->first_host, stage_->inputs, model_.operands.count, "inputs");
      for (uint32_t i = 0; i < stage_->inputs; i++) {
        const uint32_t host = model_.operands[stage_->first_host + i];
        want(host <= file::TYPES, "input %u is of kind %u", i, host);
        program_.hosts.push_back(file::Host(host));
      }
    } else if (program_.role != Role::head) {
      want(stage_->inputs == model_.carries.count, "%u inputs, wanted the %zu carries", stage_->inputs, model_.carries.count);
      for (uint32_t i = 0; i < stage_->inputs; i++)
        want(size(i) == model_.carries[i], "input %u is %u wide, the carry %u", i, size(i), model_.carries[i]);
    }
  }

  void check_outputs() {
    const auto& outputs = program_.outputs;
    if (program_.role == Role::prologue || program_.role == Role::block) {
      want(outputs.size() == model_.carries.count, "%zu outputs, wanted the %zu carries", outputs.size(), model_.carries.count);
      for (size_t i = 0; i < outputs.size(); i++)
        want(size(outputs[i]) == model_.carries[i], "output %zu is %u wide, the carry %u", i, size(outputs[i]), model_.carries[i]);
    } else if (program_.role == Role::fill) {
      const file::Range caches = program_.caches();
      want(outputs.size() == 2 * size_t(caches.count), "%zu outputs, wanted k and v of %u caches", outputs.size(), caches.count);
      for (size_t i = 0; i < outputs.size(); i++) {
        const file::Cache& cache = model_.caches[caches.first + i / 2];
        want(size(outputs[i]) == cache.kv_heads * cache.head_dim, "output %zu is %u wide, the cache %u", i, size(outputs[i]), cache.kv_heads * cache.head_dim);
        if (i % 2 == 0) program_.memories.push_back({cache.kv_heads, cache.head_dim, uint32_t(i / 2), nullptr, false});
        add({i % 2 ? VALUES : KEYS, nullptr, {outputs[i]}, NONE, NONE, uint32_t(i / 2)});
      }
      program_.outputs.clear();
    }
    uint64_t width = 0;
    for (uint32_t value : program_.outputs) width += size(value);
    want(program_.role == Role::fill || (width >= 1 && width <= file::MAX_SIZE), "its outputs are %llu wide", (unsigned long long)width);
  }

  void read_op(const Op& op) {
    static constexpr Rule RULES[] = {&Reader::embed,   &Reader::norm, &Reader::linear, &Reader::rotate, &Reader::attend, &Reader::attend_twice,
                                     &Reader::attend_learned, &Reader::same, &Reader::sum, &Reader::mul, &Reader::scale, &Reader::same,
                                     &Reader::concat,  &Reader::slice, &Reader::shift, &Reader::experts};
    static_assert(sizeof RULES / sizeof *RULES == file::OP_KINDS, "");
    op_ = &op;
    want(op.kind < file::OP_KINDS, "there is no op %u", op.kind);
    within(op.first_operand, 0, model_.operands.count, "operands");
    want(uint64_t(op.reads) + op.writes <= model_.operands.count - op.first_operand, "%u and %u operands", op.reads, op.writes);
    want(op.reads >= 1 && op.writes >= 1, "it reads %u values and writes %u", op.reads, op.writes);
    want(op.writes == 1 || op.kind == file::LINEAR, "it writes %u values", op.writes);
    for (uint32_t i = 0; i < op.reads; i++) {
      const uint32_t value = operand(op, i);
      want(value < next_, "it reads value %u before it is written", value);
      want(bool(size(value)) != (op.kind == file::EMBED), "it reads value %u, of the wrong kind", value);
    }
    for (uint32_t i = 0; i < op.writes; i++)
      want(operand(op, op.reads + i) == next_ + i && next_ + i < stage_->values, "it writes value %u, wanted %u", operand(op, op.reads + i), next_ + i);
    for (float factor : op.factors) want(std::isfinite(factor), "a factor is not finite");
    (this->*RULES[op.kind])(op);
    next_ += op.writes;
  }

  Node& add(Node node) {
    program_.nodes.push_back(std::move(node));
    return program_.nodes.back();
  }
  // The node of an op that writes one value.
  Node& add_op(const Op& op) {
    Node node;
    node.kind = op.kind;
    node.op = &op;
    for (uint32_t i = 0; i < op.reads; i++) node.reads.push_back(operand(op, i));
    node.y = operand(op, op.reads);
    return add(std::move(node));
  }

  void reads(const Op& op, uint32_t count) const { want(op.reads == count, "it reads %u values, wanted %u", op.reads, count); }
  void gives(const Op& op, uint32_t wide) const {
    const uint32_t y = operand(op, op.reads);
    want(size(y) == wide, "value %u is %u wide, wanted %u", y, size(y), wide);
  }
  uint32_t x(const Op& op, uint32_t i = 0) const { return size(operand(op, i)); }

  const file::Matrix& matrix(uint32_t number) const {
    want(number < model_.matrices.count, "matrix %u of %zu", number, model_.matrices.count);
    return model_.matrices[number];
  }
  // A vector of `wide` numbers, which may have a row for each depth.
  const file::Vector* vector(const Op& op, uint32_t number, uint32_t wide) {
    if (number == NONE) return nullptr;
    want(number < model_.vectors.count, "vector %u of %zu", number, model_.vectors.count);
    const file::Vector& found = model_.vectors[number];
    want(found.size == wide, "vector %u is %u wide, wanted %u", number, found.size, wide);
    if (found.rows) depths(op, found.rows);
    return &found;
  }
  // A weight has something of its own for each of `count` depths.
  void depths(const Op& op, uint32_t count) {
    if (op.at != NONE) return want(op.at < count, "it is at depth %u of %u of a weight", op.at, count);
    want(program_.role == Role::block || program_.role == Role::fill, "a weight differs between depths, and outside of the loop there are none");
    want(count >= model_.schedule.count && model_.header().deeper == NONE, "a weight is of %u depths, the loop of %zu", count, model_.schedule.count);
    program_.per_depth = true;
  }

  uint32_t codes(uint32_t value, const file::Matrix& m) {
    const bool coded = m.storage == file::I8 || m.storage == file::I4;
    if (!coded || !program_.int8) return NONE;
    const int32_t zero = zero_code(Kind(m.storage));
    const auto key = std::make_tuple(value, m.group, zero);
    const auto found = codes_.find(key);
    if (found != codes_.end()) return found->second;
    const uint32_t number = codes_[key] = uint32_t(program_.codes.size());
    program_.codes.push_back({value, m.group, zero});
    Node node;
    node.kind = QUANTIZE;
    node.reads = {value};
    node.codes = number;
    add(std::move(node));
    return number;
  }

  void embed(const Op& op) {
    reads(op, 1);
    const file::Matrix& table = matrix(op.weights[0]);
    want(table.parts == 1 && table.copies == 1 && !model_.part_record(op.weights[0], 0).rank, "rows of no plain matrix are looked up");
    gives(op, table.columns);
    const uint32_t value = operand(op, 0);
    want(value < program_.hosts.size(), "value %u holds no ids", value);
    const file::Header& h = model_.header();
    const uint32_t wanted[] = {h.vocab_size, h.context_length, h.token_types ? h.token_types : 1};
    const uint32_t rows = model_.part_record(op.weights[0], 0).rows;
    want(rows >= wanted[program_.hosts[value]], "a table of %u rows, wanted %u", rows, wanted[program_.hosts[value]]);
    add_op(op);
  }

  void norm(const Op& op) {
    reads(op, 1);
    gives(op, x(op));
    const uint32_t groups = op.numbers[0];
    want(op.function <= file::LAYER && groups >= 1 && x(op) % groups == 0, "a norm of kind %u over %u groups of %u", op.function, groups, x(op));
    want(op.factors[0] >= 0 && op.factors[0] <= 1, "eps is %g", double(op.factors[0]));
    vector(op, op.weights[0], x(op) / groups);
    vector(op, op.weights[1], x(op) / groups);
    add_op(op);
  }

  void linear(const Op& op) {
    reads(op, 1);
    const file::Matrix& m = matrix(op.weights[0]);
    want(x(op) == m.columns, "x is %u wide, the matrix %u", x(op), m.columns);
    const uint32_t first = op.numbers[0];
    want(first < m.parts && op.writes <= m.parts - first, "parts %u … of %u", first, m.parts);
    if (m.copies > 1) depths(op, m.copies);
    const uint32_t in = operand(op, 0), coded = codes(in, m);
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
      if (part.rank) {
        depths(op, m.depths);
        Node low;
        low.kind = LOW;
        low.op = &op;
        low.reads = {in};
        low.part = first + i;
        low.y = uint32_t(program_.sizes.size());
        program_.sizes.push_back(part.rank);
        node.low = true;
        node.reads.push_back(low.y);
        add(std::move(low));
      }
      add(std::move(node));
    }
  }

  void rotate(const Op& op) {
    reads(op, 1);
    gives(op, x(op));
    tokens();
    const uint32_t heads = op.numbers[0], by = op.numbers[1];
    want(heads >= 1 && x(op) % heads == 0 && by < model_.rotations.count, "%u heads of %u, rotation %u", heads, x(op), by);
    want(model_.rotations[by].dims <= x(op) / heads, "it turns %u dims of heads of %u", model_.rotations[by].dims, x(op) / heads);
    add_op(op);
  }

  // Of an op that knows positions or reads other tokens.
  void tokens() const { want(program_.role != Role::head, "the head has some tokens only"); }

  void heads_of(const Op& op) const {
    const uint32_t heads = op.numbers[0], kv_heads = op.numbers[1], dim = op.numbers[2];
    want(kv_heads >= 1 && heads >= kv_heads && heads % kv_heads == 0 && dim >= 1 && heads <= file::MAX_SIZE && uint64_t(heads) * dim <= file::MAX_SIZE,
         "%u heads, %u of K and V, of %u", heads, kv_heads, dim);
    want(x(op) == heads * dim, "q is %u wide, wanted %u", x(op), heads * dim);
    gives(op, heads * dim);
  }

  // The cache of an attention: numbered as they come. Adds the nodes that write to it.
  uint32_t memory(const Op& op, uint32_t window, bool writes, bool first_slot) {
    const uint32_t kv_heads = op.numbers[1], dim = op.numbers[2], cache = op.numbers[3];
    const uint32_t number = uint32_t(program_.memories.size());
    if (cache != NONE) {
      const file::Range caches = program_.caches();
      want(cache == caches_ && cache < caches.count, "cache %u, wanted %u of %u", cache, caches_, caches.count);
      const file::Cache& found = model_.caches[caches.first + cache];
      want(found.kv_heads == kv_heads && found.head_dim == dim && found.window == window, "cache %u is of %u heads of %u, window %u", cache, found.kv_heads,
           found.head_dim, found.window);
      caches_++;
    }
    program_.memories.push_back({kv_heads, dim, cache, nullptr, first_slot});
    for (uint32_t i = 0; writes && i < 2; i++) {
      want(x(op, 1 + i) == kv_heads * dim, "%c is %u wide, wanted %u", "kv"[i], x(op, 1 + i), kv_heads * dim);
      Node node;
      node.kind = i ? VALUES : KEYS;
      node.reads = {operand(op, 1 + i)};
      node.memory = number;
      add(std::move(node));
    }
    return number;
  }

  void attend(const Op& op) {
    tokens();
    want(op.reads == 1 || op.reads == 3, "it reads %u values", op.reads);
    heads_of(op);
    const uint32_t cache = op.numbers[3], window = op.numbers[4], mask = op.numbers[5];
    const bool first = op.flags & file::FIRST_SLOT, block = program_.role == Role::block;
    want(cache != NONE || (op.reads == 3 && !first), "no K and V are there");
    want(!first || block, "depths share K and V outside of the loop");
    want(op.reads == 3 || (first && block), "it has no k and v");
    want(mask <= file::PREFIX && (mask != file::BOTH || cache == NONE), "mask %u", mask);
    want(window <= file::MAX_SIZE && op.factors[1] >= 0, "window %u, cap %g", window, double(op.factors[1]));
    if (mask != file::CAUSAL || cache == NONE) program_.whole_lanes = true;
    if (first) program_.first_slots = true;
    const uint32_t held = window >= model_.header().context_length ? 0 : window;
    const uint32_t number = memory(op, held, op.reads == 3, first);
    Node& node = add_op(op);
    node.memory = number;
  }

  void attend_twice(const Op& op) {
    reads(op, 4);
    heads_of(op);
    want(program_.role == Role::block && op.numbers[3] != NONE && !model_.header().shares_kv, "it reads the K and V of two depths");
    want(x(op, 3) == op.numbers[0], "the gate is %u wide, wanted %u", x(op, 3), op.numbers[0]);
    want(op.numbers[4] >= 1 && op.numbers[4] <= file::MAX_SIZE, "window %u", op.numbers[4]);
    program_.first_slots = true;
    const uint32_t number = memory(op, 0, true, false);
    Node& node = add_op(op);
    node.memory = number;
  }

  void attend_learned(const Op& op) {
    reads(op, 1);
    heads_of(op);
    const uint32_t wide = op.numbers[1] * op.numbers[2];
    uint32_t rows[2];
    for (int i = 0; i < 2; i++) {
      want(op.weights[i] < model_.vectors.count, "vector %u of %zu", op.weights[i], model_.vectors.count);
      const file::Vector& found = model_.vectors[op.weights[i]];
      want(found.size == wide && found.rows >= 1, "vector %u is [%u, %u], wanted a row of %u a key", op.weights[i], found.rows, found.size, wide);
      rows[i] = found.rows;
    }
    want(rows[0] == rows[1], "%u keys and %u values", rows[0], rows[1]);
    const uint32_t number = uint32_t(program_.memories.size());
    program_.memories.push_back({op.numbers[1], op.numbers[2], NONE, &op, false});
    Node& node = add_op(op);
    node.memory = number;
  }

  void same(const Op& op) {
    reads(op, 1);
    gives(op, x(op));
    want(op.kind != file::ACT || op.function < file::FUNCTIONS, "there is no function %u", op.function);
    want(op.kind != file::SOFTCAP || op.factors[0] > 0, "cap is %g", double(op.factors[0]));
    add_op(op);
  }

  void sum(const Op& op) {
    reads(op, 2);
    want(x(op) == x(op, 1), "a is %u wide, b %u", x(op), x(op, 1));
    gives(op, x(op));
    add_op(op);
  }

  void mul(const Op& op) {
    reads(op, 2);
    want(x(op) % x(op, 1) == 0, "a is %u wide, b %u", x(op), x(op, 1));
    gives(op, x(op));
    add_op(op);
  }

  void scale(const Op& op) {
    reads(op, 1);
    gives(op, x(op));
    vector(op, op.weights[0], x(op));
    add_op(op);
  }

  void concat(const Op& op) {
    uint64_t wide = 0;
    for (uint32_t i = 0; i < op.reads; i++) wide += x(op, i);
    want(wide <= file::MAX_SIZE, "it makes %llu numbers of a row", (unsigned long long)wide);
    gives(op, uint32_t(wide));
    add_op(op);
  }

  void slice(const Op& op) {
    reads(op, 1);
    want(op.numbers[0] < op.numbers[1] && op.numbers[1] <= x(op), "columns %u to %u of %u", op.numbers[0], op.numbers[1], x(op));
    gives(op, op.numbers[1] - op.numbers[0]);
    add_op(op);
  }

  void shift(const Op& op) {
    reads(op, 1);
    gives(op, x(op));
    want(program_.role != Role::head && program_.role != Role::fill, "it reads other tokens");
    const file::Range kept = program_.kept();
    want(op.numbers[0] == shifts_ && shifts_ < kept.count, "kept row %u, wanted %u of %u", op.numbers[0], shifts_, kept.count);
    want(model_.kept[kept.first + shifts_] == x(op), "kept row %u is %u wide, x %u", shifts_, model_.kept[kept.first + shifts_], x(op));
    shifts_++;
    add_op(op);
  }

  void experts(const Op& op) {
    reads(op, 2);
    const file::Matrix &up = matrix(op.weights[0]), &down = matrix(op.weights[1]);
    const uint32_t count = x(op, 1), halves = op.flags & file::GATED ? 2 : 1;
    want(count <= MAX_EXPERTS && op.numbers[0] >= 1 && op.numbers[0] <= count && op.function < file::FUNCTIONS, "the best %u of %u experts, function %u",
         op.numbers[0], count, op.function);
    want(up.parts == 1 && down.parts == 1 && up.copies == count && down.copies == count && !up.bias && !down.bias, "matrices of %u and %u experts, wanted %u plain ones",
         up.copies, down.copies, count);
    const file::Part &in = model_.part_record(op.weights[0], 0), &out = model_.part_record(op.weights[1], 0);
    want(!in.rank && !out.rank && in.rows % halves == 0 && up.columns == x(op) && down.columns == in.rows / halves && out.rows == x(op),
         "experts of [%u, %u] and [%u, %u] for rows of %u", in.rows, up.columns, out.rows, down.columns, x(op));
    gives(op, x(op));
    add_op(op);
  }

  const Model& model_;
  uint32_t number_;
  const file::Stage* stage_ = nullptr;
  Program program_;
  const Op* op_ = nullptr;  // for messages
  uint32_t at_ = 0;
  uint32_t next_ = 0;  // the value that is written next
  uint32_t caches_ = 0, shifts_ = 0;
  std::map<std::tuple<uint32_t, uint32_t, int32_t>, uint32_t> codes_;
};

}  // namespace

uint32_t Program::output_width() const {
  uint32_t width = 0;
  for (uint32_t value : outputs) width += sizes[value];
  return width;
}

uint32_t Program::caches_of() const {
  if (role == Role::head) return NONE;
  return role == Role::prologue ? file::PROLOGUE : role == Role::epilogue ? file::EPILOGUE : file::BLOCK;
}

file::Range Program::caches() const { return role == Role::head ? file::Range{0, 0} : model->header().caches[caches_of()]; }

file::Range Program::kept() const { return role == Role::head ? file::Range{0, 0} : model->header().kept[caches_of()]; }

Program read_program(const Model& model, uint32_t number, Role role, bool int8) { return Reader(model, number, role, int8).read(); }

}  // namespace edgeloop
