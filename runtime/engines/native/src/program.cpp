#include "program.h"

#include <cmath>

#include "error.h"
#include "program_reader.h"

namespace edgeloop {

using file::NONE, file::Op;

namespace {

constexpr uint32_t MAX_VALUES = 1u << 16;  // of a stage
constexpr const char* ROLES[] = {"prologue", "block", "fill", "epilogue", "head"};

}  // namespace

const char* Reader::role_name() const { return ROLES[int(program_.role)]; }

const char* Reader::kind_name() const { return op_->kind < file::OP_KINDS ? OPS[op_->kind].name : "?"; }

Program Reader::read() {
  want(number_ < model_.stages.count, "it is stage %u of %zu", number_, model_.stages.count);
  stage_ = &model_.stages[number_];
  within(stage_->first_op, stage_->ops, model_.ops.count, "ops");
  within(stage_->first_value, stage_->values, model_.values.count, "values");
  within(stage_->first_output, stage_->outputs, model_.operands.count, "outputs");
  want(stage_->values <= MAX_VALUES && stage_->inputs <= stage_->values, "%u values, %u of them inputs",
      stage_->values, stage_->inputs);
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

void Reader::read_inputs() {
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
    want(stage_->inputs == model_.carries.count, "%u inputs, wanted the %zu carries", stage_->inputs,
        model_.carries.count);
    for (uint32_t i = 0; i < stage_->inputs; i++)
      want(size(i) == model_.carries[i], "input %u is %u wide, the carry %u", i, size(i), model_.carries[i]);
  }
}

void Reader::check_outputs() {
  const auto& outputs = program_.outputs;
  if (program_.role == Role::prologue || program_.role == Role::block) {
    want(outputs.size() == model_.carries.count, "%zu outputs, wanted the %zu carries", outputs.size(),
        model_.carries.count);
    for (size_t i = 0; i < outputs.size(); i++)
      want(size(outputs[i]) == model_.carries[i], "output %zu is %u wide, the carry %u", i, size(outputs[i]),
          model_.carries[i]);
  } else if (program_.role == Role::fill) {
    const file::Range caches = program_.caches();
    want(outputs.size() == 2 * size_t(caches.count), "%zu outputs, wanted k and v of %u caches", outputs.size(),
        caches.count);
    for (size_t i = 0; i < outputs.size(); i++) {
      const file::Cache& cache = model_.caches[caches.first + i / 2];
      want(size(outputs[i]) == cache.kv_heads * cache.head_dim, "output %zu is %u wide, the cache %u", i,
          size(outputs[i]), cache.kv_heads * cache.head_dim);
      if (i % 2 == 0) program_.memories.push_back({cache.kv_heads, cache.head_dim, uint32_t(i / 2), nullptr, false});
      add({i % 2 ? VALUES : KEYS, nullptr, {outputs[i]}, NONE, NONE, uint32_t(i / 2)});
    }
    program_.outputs.clear();
  }
  uint64_t width = 0;
  for (uint32_t value : program_.outputs) width += size(value);
  want(program_.role == Role::fill || (width >= 1 && width <= file::MAX_SIZE), "its outputs are %llu wide",
      (unsigned long long)width);
}

void Reader::read_op(const Op& op) {
  op_ = &op;
  want(op.kind < file::OP_KINDS, "there is no op %u", op.kind);
  within(op.first_operand, 0, model_.operands.count, "operands");
  want(uint64_t(op.reads) + op.writes <= model_.operands.count - op.first_operand, "%u and %u operands", op.reads,
      op.writes);
  want(op.reads >= 1 && op.writes >= 1, "it reads %u values and writes %u", op.reads, op.writes);
  want(op.writes == 1 || op.kind == file::LINEAR, "it writes %u values", op.writes);
  for (uint32_t i = 0; i < op.reads; i++) {
    const uint32_t value = operand(op, i);
    want(value < next_, "it reads value %u before it is written", value);
    want(bool(size(value)) != (op.kind == file::EMBED), "it reads value %u, of the wrong kind", value);
  }
  for (uint32_t i = 0; i < op.writes; i++)
    want(operand(op, op.reads + i) == next_ + i && next_ + i < stage_->values, "it writes value %u, wanted %u",
        operand(op, op.reads + i), next_ + i);
  for (float factor : op.factors) want(std::isfinite(factor), "a factor is not finite");
  (this->*OPS[op.kind].rule)(op);
  next_ += op.writes;
}

uint32_t Program::output_width() const {
  uint32_t width = 0;
  for (uint32_t value : outputs) width += sizes[value];
  return width;
}

uint32_t Program::caches_of() const {
  if (role == Role::head) return NONE;
  return role == Role::prologue ? file::PROLOGUE : role == Role::epilogue ? file::EPILOGUE : file::BLOCK;
}

file::Range Program::caches() const {
  return role == Role::head ? file::Range{0, 0} : model->header().caches[caches_of()];
}

file::Range Program::kept() const {
  return role == Role::head ? file::Range{0, 0} : model->header().kept[caches_of()];
}

Program read_program(const Model& model, uint32_t number, Role role, bool int8) { return Reader(model, number, role,
    int8).read(); }

}  // namespace edgeloop
