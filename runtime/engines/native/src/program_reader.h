// How a stage is read (program.cpp), and what each op must be (program_rules.cpp).
#pragma once

#include <cstdio>
#include <map>
#include <tuple>
#include <utility>

#include "error.h"
#include "program.h"

namespace edgeloop {

// Reads a stage op by op. The rules are those of runtime/model/sizes.py and op_checks.py.
class Reader {
 public:
  Reader(const Model& model, uint32_t number, Role role, bool int8) : model_(model), number_(number) {
    program_.model = &model;
    program_.role = role;
    program_.int8 = int8;
  }

  Program read();

 private:
  // What is wrong with an op, and the nodes that it becomes.
  struct OpRule {
    const char* name;
    void (Reader::*rule)(const file::Op&);
  };
  static const OpRule OPS[file::OP_KINDS];  // by kind

  template <class... Values>
  void want(bool good, const char* format, Values... values) const {
    if (good) return;
    char text[EL_ERROR_SIZE];
    if constexpr (sizeof...(values) == 0) std::snprintf(text, sizeof text, "%s", format);
    else std::snprintf(text, sizeof text, format, values...);
    if (op_) fail(EL_FORMAT, "%s op %u (%s): %s", role_name(), at_, kind_name(), text);
    fail(EL_FORMAT, "%s: %s", role_name(), text);
  }
  void within(uint32_t first, uint32_t count, size_t size, const char* what) const {
    want(first <= size && count <= size - first, "%u %s from %u on, the file has %zu", count, what, first, size);
  }

  const char* role_name() const;
  const char* kind_name() const;
  uint32_t size(uint32_t value) const { return program_.sizes[value]; }
  uint32_t operand(const file::Op& op, uint32_t i) const { return model_.operands[op.first_operand + i]; }

  void read_inputs();
  void check_outputs();
  void read_op(const file::Op& op);

  Node& add(Node node) {
    program_.nodes.push_back(std::move(node));
    return program_.nodes.back();
  }
  // The node of an op that writes one value.
  Node& add_op(const file::Op& op) {
    Node node;
    node.kind = op.kind;
    node.op = &op;
    for (uint32_t i = 0; i < op.reads; i++) node.reads.push_back(operand(op, i));
    node.y = operand(op, op.reads);
    return add(std::move(node));
  }

  void reads(const file::Op& op, uint32_t count) const {
    want(op.reads == count, "it reads %u values, wanted %u", op.reads, count);
  }
  void gives(const file::Op& op, uint32_t wide) const {
    const uint32_t y = operand(op, op.reads);
    want(size(y) == wide, "value %u is %u wide, wanted %u", y, size(y), wide);
  }
  uint32_t x(const file::Op& op, uint32_t i = 0) const { return size(operand(op, i)); }

  const file::Matrix& matrix(uint32_t number) const {
    want(number < model_.matrices.count, "matrix %u of %zu", number, model_.matrices.count);
    return model_.matrices[number];
  }
  // A vector of `wide` numbers, which may have a row for each depth.
  const file::Vector* vector(const file::Op& op, uint32_t number, uint32_t wide);
  // A weight has something of its own for each of `count` depths.
  void depths(const file::Op& op, uint32_t count);
  // The codes of a value that a matrix of a storage and group is multiplied with, or NONE; adds the node that makes them.
  uint32_t codes(uint32_t value, uint32_t storage, uint32_t group);

  void embed(const file::Op& op);
  void norm(const file::Op& op);
  void linear(const file::Op& op);
  void rotate(const file::Op& op);
  // Of an op that knows positions or reads other tokens.
  void tokens() const { want(program_.role != Role::head, "the head has some tokens only"); }
  void heads_of(const file::Op& op) const;
  // The cache of an attention: numbered as they come. Adds the nodes that write to it.
  uint32_t memory(const file::Op& op, uint32_t window, bool writes, bool first_slot);
  void attend(const file::Op& op);
  void attend_twice(const file::Op& op);
  void attend_learned(const file::Op& op);
  void same(const file::Op& op);
  void sum(const file::Op& op);
  void mul(const file::Op& op);
  void scale(const file::Op& op);
  void concat(const file::Op& op);
  void slice(const file::Op& op);
  void shift(const file::Op& op);
  void experts(const file::Op& op);

  const Model& model_;
  uint32_t number_;
  const file::Stage* stage_ = nullptr;
  Program program_;
  const file::Op* op_ = nullptr;  // for messages
  uint32_t at_ = 0;
  uint32_t next_ = 0;  // the value that is written next
  uint32_t caches_ = 0, shifts_ = 0;
  std::map<std::tuple<uint32_t, uint32_t, int32_t>, uint32_t> codes_;
};

}  // namespace edgeloop
