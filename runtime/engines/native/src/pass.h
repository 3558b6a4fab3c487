// A pass: one program on some rows, by a team of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cache.h"
#include "kernels/kernels.h"
#include "plan.h"
#include "program.h"
#include "rotary.h"
#include "spent.h"
#include "threads.h"

namespace edgeloop {

// Floats that only grow, 64-byte aligned; what they held is lost then.
class Buffer {
 public:
  float* reserve(size_t floats);
  float* data() const { return memory_.get(); }
  size_t bytes() const { return size_ * sizeof(float); }

 private:
  struct Free {
    void operator()(float* memory) const;
  };
  std::unique_ptr<float, Free> memory_;
  size_t size_ = 0;
};

// Keys and values that are weights, in blocks as a cache has them.
struct Learned {
  Block memory;
  std::vector<const void*> blocks;
  uint32_t count = 0;
};

// A program with its plan, ready to run.
struct Compiled {
  Program program;
  Plan plan;
  std::vector<Learned> learned;  // of each memory, empty for those that are not
};
Compiled compile(const Model& model, uint32_t stage, Role role, bool int8, const Kernels& kernels);

// Rows of a lane that are in a pass, which follow on each other.
struct Lane {
  uint32_t first = 0, rows = 0;        // of the pass
  uint32_t depth = 0, cached = 0;      // tokens in the slot before these rows
  uint32_t slot = 0, first_slot = 0;   // of its own depth, of depth 0
  uint32_t prefix = 0;                 // tokens of the sequence's first block, if these are it
  uint32_t block = 0;                  // the first of its blocks in memories of the call's own rows
  const float* before = nullptr;       // rows that Shift keeps; null: there are none
  float* after = nullptr;              // those that it will keep
};

// Rows of one depth.
struct Run {
  uint32_t first, last, depth;
};

// What a pass is given: everything that its ops read beside weights.
struct Rows {
  uint32_t count = 0;
  std::vector<Lane> lanes;
  std::vector<Run> runs;
  std::vector<uint32_t> lane_of;      // [count]
  std::vector<uint32_t> positions;    // [count]
  std::vector<int64_t> hosts[3];      // [count], by file::Host, of prologues

  void clear();
  // Adds rows of a lane; returns the first.
  uint32_t add(const Lane& lane);
};

// The memory of passes, used again by every one of them.
struct Workspace {
  Buffer shared, memory, kept;
  std::vector<Buffer> own, scratch;  // of each thread
  std::vector<std::vector<const void*>> addresses;  // of blocks in `memory`, by the program's memories
  Spent* spent = nullptr;            // what passes cost, for those who ask
  size_t bytes() const;
};

// Rows of one value: row m, column c is at start[m * stride + c].
struct Value {
  float* start;
  ptrdiff_t stride;
  float* row(uint32_t m) const { return start + ptrdiff_t(m) * stride; }
};

// Blocks of K and V of one lane, and which tokens are this pass's.
struct Held {
  KvLayout layout;
  const void* const* blocks;
  uint32_t before;  // tokens ahead of the lane's rows
};

struct Piece;

class Pass {
 public:
  // `caches` null: of programs that have none. `output`: where a head's rows go, [rows][output_width].
  Pass(const Compiled& what, const Kernels& kernels, Turns& turns, Workspace& space, Team& team, Caches* caches,
      Rows& rows, float* output);
  // Where the caller puts a value of the program's inputs, or finds one of its outputs after `run`.
  Value input(uint32_t value) const { return value_of(value, 0, false); }
  Value result(uint32_t value) const { return value_of(value, 0, was_narrow_); }
  void run(int kind);

  const Compiled& what;
  const Program& program;
  const Plan& plan;
  const Model& model;
  const Kernels& kernels;
  const Turns& turns;
  Workspace& space;
  Team& team;
  Caches* caches;
  const Rows& rows;
  float* output;

  Value value_of(uint32_t value, int worker, bool narrow) const;
  Codes codes_of(uint32_t codes, int worker, bool narrow) const;
  // `depth_0`: that of depth 0, also where a memory is a depth's own.
  Held held(uint32_t memory, const Lane& lane, bool depth_0 = false) const;
  // The depth that an op's weights are those of, for rows of a lane's depth.
  static uint32_t depth(const file::Op& op, uint32_t lane) { return op.at == file::NONE ? lane : op.at; }

 private:
  struct Group {  // rows of one lane that are attended to together
    uint32_t lane, first, last;
  };
  void work(int worker);
  void do_step(const Step& step, int worker, bool narrow);
  void do_nodes(const std::vector<uint32_t>& nodes, const Piece& piece);
  void do_rows(const Step& step, int worker, bool narrow, uint32_t first, uint32_t last);
  void do_columns(const Step& step, int worker, bool narrow, uint32_t unit, uint32_t first_row, uint32_t last_row);
  void do_attend(const Step& step, int worker, bool narrow, uint32_t unit);
  void do_experts(const Step& step, int worker, bool narrow, uint32_t row);
  uint32_t attend_units(const Step& step) const;
  // Rows in blocks, as many as threads where each then has enough of them: its codes and sums stay in its caches.
  uint32_t row_blocks() const { return std::clamp(rows.count / BLOCK_ROWS, 1u, uint32_t(team.count())); }
  uint32_t first_of_block(uint32_t block) const;

  size_t capacity_ = 0;        // rows that the room is laid out for
  size_t memory_tokens_ = 0;   // the same, of memories of the call's own rows
  size_t attend_floats_ = 0;   // of a thread's scratch, for one call of the kernel
  std::vector<Group> groups_;
  bool was_narrow_ = false;
};

}  // namespace edgeloop
