// What a stage of a file computes, checked: its ops as nodes over numbered values, with what the engine does beside
// them made nodes of their own (activations become codes, K and V go into a cache, the A side of a delta).
#pragma once

#include <cstdint>
#include <vector>

#include "model.h"

namespace edgeloop {

// What a stage is run as: it says what it may read, and whose caches it has.
enum class Role : uint8_t { prologue, block, fill, epilogue, head };

// Kinds of nodes: those of file::OpKind, a linear op once for each part that it writes, and these.
enum InnerKind : uint32_t {
  QUANTIZE = file::OP_KINDS,  // x → codes
  KEYS,                       // k → a cache
  VALUES,                     // v → a cache
  LOW,                        // x → A x, of a part with deltas
  NODE_KINDS,
};

struct Node {
  uint32_t kind = 0;
  const file::Op* op = nullptr;
  std::vector<uint32_t> reads;   // values
  uint32_t y = file::NONE;       // the value that it writes
  uint32_t codes = file::NONE;   // that it writes (QUANTIZE) or multiplies (LINEAR, LOW)
  uint32_t memory = file::NONE;  // of K and V: that it writes or reads
  uint32_t part = 0;             // of op's matrix: LINEAR, LOW
  bool low = false;              // LINEAR: reads[1] is A x
  uint32_t low_codes = file::NONE;  // LINEAR: codes of A x, that it multiplies
  Matrix only{};                 // LINEAR: the matrix, where there is one for all depths; its tables would be far away
  const float* bias = nullptr;   // and its bias
};

// A value's int8 codes, as the matrices that are multiplied with them group their columns.
struct CodesOf {
  uint32_t value, group;
  int32_t zero;  // of the weights' codes
};

// K and V that a stage reads: of a cache, of the rows of a call alone, or learned.
struct Memory {
  uint32_t kv_heads, head_dim;
  uint32_t cache = file::NONE;       // of the stage; NONE: of the call's rows
  const file::Op* learned = nullptr;
  bool first_slot = false;           // is it depth 0's, for all depths?
};

struct Program {
  const Model* model = nullptr;
  Role role = Role::prologue;
  bool int8 = true;  // do inputs of quantized matrices become codes?
  std::vector<uint32_t> sizes;  // of all values; 0: whole numbers
  uint32_t inputs = 0;          // values 0 … inputs − 1
  std::vector<file::Host> hosts;  // of a prologue's inputs
  std::vector<uint32_t> outputs;
  std::vector<Node> nodes;        // in an order in which they can be run
  std::vector<CodesOf> codes;
  std::vector<Memory> memories;
  bool whole_lanes = false;  // does a row see later ones? Then all of a lane's are wanted at once
  bool first_slots = false;  // are depth 0's K and V read beside a lane's own, or in place of them?
  bool per_depth = false;    // is there a weight that is the lane's depth's?

  uint32_t output_width() const;

  // Which of the caches of the file are this stage's: file::StageWithCaches, or NONE for a head.
  uint32_t caches_of() const;
  file::Range caches() const;
  file::Range kept() const;
};

// Stage `number` of `model`, run as `role`. Throws an Error with EL_FORMAT for the first thing that is wrong with it.
Program read_program(const Model& model, uint32_t number, Role role, bool int8);

}  // namespace edgeloop
