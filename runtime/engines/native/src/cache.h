// K and V of the sequences of a session, and how they lie in memory: in blocks of 16 tokens, so that a product of q and
// 16 keys needs no horizontal sums. Blocks are taken as a slot fills up, and given back as a window moves on. A block
// that is copied is shared, until somebody writes to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "block.h"
#include "edgeloop.h"
#include "kv_layout.h"
#include "model.h"

namespace edgeloop {

// The tokens of one slot in one cache.
class Slot {
 public:
  // Makes room for tokens up to `end`, of which those from `cached` on are to be written, in blocks that are this slot's
  // alone; lets go of what no row from there on sees. False when the window has left rows behind that would be seen again.
  bool reserve(const KvLayout& layout, uint32_t window, uint32_t cached, uint32_t end);
  // Lets go of what no row from `cached` on sees; blocks that nobody else has go to `spare`. False as above.
  bool move_on(uint32_t window, uint32_t cached, std::vector<Block>& spare);
  // Room as `reserve` makes it, in spare blocks or new ones.
  void make_room(const KvLayout& layout, uint32_t cached, uint32_t end, std::vector<Block>& spare);
  // Block b becomes `shared`, which may be none.
  void share(uint32_t b, Block shared);
  // Tokens before this one are not here, whatever there was before.
  void begins(uint32_t token);
  // Of block b; null for those that were let go or never written.
  const void* const* blocks() const { return addresses_.data(); }
  const Block& block(uint32_t b) const { return b < blocks_.size() ? blocks_[b] : NOTHING; }
  uint32_t count() const { return uint32_t(blocks_.size()); }
  // The first token that is still there.
  uint32_t first() const { return first_; }
  void trim(uint32_t tokens);

 private:
  static const Block NOTHING;
  void put(uint32_t b, Block block);

  std::vector<Block> blocks_;
  std::vector<const void*> addresses_;
  uint32_t first_ = 0;
};

// The rows that Shift keeps of one slot: of how many tokens they are the last, and the rows side by side.
struct KeptRows {
  uint32_t tokens = 0;
  std::vector<float> rows;
};

// Tokens beside a window that are kept, so that a sequence can go back by as many.
constexpr uint32_t SLACK = 128;

// Bytes of K and V: each block once, and those of them that other sessions have, too.
struct KvBytes {
  size_t all = 0, shared = 0;
};

// All slots of a session.
class Caches {
 public:
  Caches(const Model& model, uint32_t sequences, uint32_t capacity, uint32_t slots, el_kv kv);

  uint32_t sequences() const { return sequences_; }
  uint32_t capacity() const { return capacity_; }
  uint32_t slots_per_sequence() const { return slots_; }
  el_kv kv() const { return kv_; }
  const Model& model() const { return *model_; }

  uint32_t slots(uint32_t stage) const { return stage == file::BLOCK ? sequences_ * slots_ : sequences_; }
  uint32_t caches(uint32_t stage) const { return model_->header().caches[stage].count; }
  const file::Cache& cache(uint32_t stage, uint32_t number) const {
    return model_->caches[model_->header().caches[stage].first + number];
  }
  KvLayout layout(uint32_t stage, uint32_t number) const;
  Slot& slot(uint32_t stage, uint32_t slot, uint32_t number) {
    return stages_[stage][size_t(slot) * caches(stage) + number];
  }
  const Slot& slot(uint32_t stage, uint32_t slot, uint32_t number) const {
    return stages_[stage][size_t(slot) * caches(stage) + number];
  }
  KeptRows& kept(uint32_t stage, uint32_t slot) { return kept_[stage][slot]; }
  const KeptRows& kept(uint32_t stage, uint32_t slot) const { return kept_[stage][slot]; }
  size_t kept_floats(uint32_t stage) const { return kept_floats_[stage]; }

  // Room in every cache of a slot for tokens up to `end`, `cached` of which stay; EL_USAGE when those have left a window.
  void reserve(uint32_t stage, uint32_t slot, uint32_t cached, uint32_t end);
  void trim(uint32_t stage, uint32_t slot, uint32_t tokens);
  bool can_truncate(uint32_t cached, uint32_t tokens) const;
  KvBytes bytes() const;

  size_t row_bytes(uint32_t stage) const;
  void read_rows(uint32_t stage, uint32_t slot, uint32_t first, uint32_t count, uint8_t* rows) const;
  void write_rows(uint32_t stage, uint32_t slot, uint32_t first, uint32_t count, const uint8_t* rows);
  // Rows `first` … of a slot of `source` become rows `to` …; whole blocks are shared, where they lie alike in both.
  void copy(uint32_t stage, uint32_t slot, uint32_t to, const Caches& source, uint32_t source_slot, uint32_t first,
      uint32_t count);

 private:
  const Model* model_;
  uint32_t sequences_, capacity_, slots_;
  el_kv kv_;
  std::vector<Slot> stages_[file::STAGES_WITH_CACHES];
  std::vector<KeptRows> kept_[file::STAGES_WITH_CACHES];
  size_t kept_floats_[file::STAGES_WITH_CACHES] = {};
};

}  // namespace edgeloop
