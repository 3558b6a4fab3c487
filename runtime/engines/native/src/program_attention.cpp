// What ops of attention must be, and which keys and values each of them reads or writes.
#include "error.h"
#include "program_reader.h"

namespace edgeloop {

using file::NONE, file::Op;

void Reader::heads_of(const Op& op) const {
  const uint32_t heads = op.numbers[0], kv_heads = op.numbers[1], dim = op.numbers[2];
  const bool fits = dim >= 1 && heads <= file::MAX_SIZE && uint64_t(heads) * dim <= file::MAX_SIZE;
  want(fits && kv_heads >= 1 && heads >= kv_heads && heads % kv_heads == 0, "%u heads, %u of K and V, of %u", heads,
      kv_heads, dim);
  want(x(op) == heads * dim, "q is %u wide, wanted %u", x(op), heads * dim);
  gives(op, heads * dim);
}

uint32_t Reader::memory(const Op& op, uint32_t window, bool writes, bool first_slot) {
  const uint32_t kv_heads = op.numbers[1], dim = op.numbers[2], cache = op.numbers[3];
  const uint32_t number = uint32_t(program_.memories.size());
  if (cache != NONE) {
    const file::Range caches = program_.caches();
    want(cache == caches_ && cache < caches.count, "cache %u, wanted %u of %u", cache, caches_, caches.count);
    const file::Cache& found = model_.caches[caches.first + cache];
    want(found.kv_heads == kv_heads && found.head_dim == dim && found.window == window,
        "cache %u is of %u heads of %u, window %u", cache, found.kv_heads, found.head_dim, found.window);
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

void Reader::attend(const Op& op) {
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

void Reader::attend_twice(const Op& op) {
  reads(op, 4);
  heads_of(op);
  want(program_.role == Role::block && op.numbers[3] != NONE && !model_.header().shares_kv,
      "it reads the K and V of two depths");
  want(x(op, 3) == op.numbers[0], "the gate is %u wide, wanted %u", x(op, 3), op.numbers[0]);
  want(op.numbers[4] >= 1 && op.numbers[4] <= file::MAX_SIZE, "window %u", op.numbers[4]);
  program_.first_slots = true;
  const uint32_t number = memory(op, 0, true, false);
  Node& node = add_op(op);
  node.memory = number;
}

void Reader::attend_learned(const Op& op) {
  reads(op, 1);
  heads_of(op);
  const uint32_t wide = op.numbers[1] * op.numbers[2];
  uint32_t rows[2];
  for (int i = 0; i < 2; i++) {
    want(op.weights[i] < model_.vectors.count, "vector %u of %zu", op.weights[i], model_.vectors.count);
    const file::Vector& found = model_.vectors[op.weights[i]];
    want(found.size == wide && found.rows >= 1, "vector %u is [%u, %u], wanted a row of %u a key", op.weights[i],
        found.rows, found.size, wide);
    rows[i] = found.rows;
  }
  want(rows[0] == rows[1], "%u keys and %u values", rows[0], rows[1]);
  const uint32_t number = uint32_t(program_.memories.size());
  program_.memories.push_back({op.numbers[1], op.numbers[2], NONE, &op, false});
  Node& node = add_op(op);
  node.memory = number;
}

}  // namespace edgeloop
