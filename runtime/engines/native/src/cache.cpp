#include "cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace edgeloop {

using file::TILE;

namespace {

// One row of a head between a block and a place where k and v lie side by side: `to_block` says in which direction.
void move_row(const KvLayout& layout, uint32_t head, uint32_t token, uint8_t* block, uint8_t* row, bool to_block) {
  const size_t number = layout.bytes, column = token % TILE, wide = layout.head_dim * number;
  uint8_t* keys = block + layout.keys(head);
  uint8_t* values = block + layout.values(head) + column * wide;
  uint8_t* k = row + head * wide;
  uint8_t* v = row + (layout.kv_heads + head) * wide;
  for (uint32_t i = 0; i < layout.head_dim; i++) {
    uint8_t* place = keys + (i * TILE + column) * number;
    to_block ? std::memcpy(place, k + i * number, number) : std::memcpy(k + i * number, place, number);
  }
  to_block ? std::memcpy(values, v, wide) : std::memcpy(v, values, wide);
}

void move_token(const KvLayout& layout, uint32_t token, uint8_t* block, uint8_t* row, bool to_block) {
  for (uint32_t head = 0; head < layout.kv_heads; head++) move_row(layout, head, token, block, row, to_block);
}

}  // namespace

void FreeBlock::operator()(uint8_t* block) const { std::free(block); }

Block new_block(size_t bytes) {
  const size_t whole = (bytes + 63) / 64 * 64;
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, whole)) fail(EL_MEMORY, "no memory for %zu bytes of K and V", whole);
  std::memset(memory, 0, whole);
  return Block(static_cast<uint8_t*>(memory));
}

bool Slot::reserve(const KvLayout& layout, uint32_t window, uint32_t cached, uint32_t end) {
  if (cached == 0) first_ = 0;
  uint32_t seen = 0;  // the first token that a new row sees
  if (window && cached + 1 > window) seen = cached + 1 - window;
  if (seen < first_) return false;
  const uint32_t kept = seen > SLACK ? (seen - SLACK) / TILE : 0;
  std::vector<Block> spare;
  for (uint32_t b = first_ / TILE; b < kept && b < blocks_.size(); b++) {
    if (!blocks_[b]) continue;
    spare.push_back(std::move(blocks_[b]));
    addresses_[b] = nullptr;
  }
  first_ = std::max(first_, kept * TILE);
  const uint32_t count = (end + TILE - 1) / TILE;
  if (blocks_.size() < count) {
    blocks_.resize(count);
    addresses_.resize(count, nullptr);
  }
  for (uint32_t b = first_ / TILE; b < count; b++) {
    if (blocks_[b]) continue;
    if (spare.empty()) {
      blocks_[b] = new_block(layout.block());
    } else {
      blocks_[b] = std::move(spare.back());
      spare.pop_back();
    }
    addresses_[b] = blocks_[b].get();
  }
  return true;
}

void Slot::trim(uint32_t tokens) {
  const uint32_t count = (tokens + TILE - 1) / TILE;
  if (count < blocks_.size()) {
    blocks_.resize(count);
    addresses_.resize(count);
  }
  if (!tokens) first_ = 0;
}

size_t Slot::held() const {
  return size_t(std::count_if(blocks_.begin(), blocks_.end(), [](const Block& block) { return bool(block); }));
}

Caches::Caches(const Model& model, uint32_t sequences, uint32_t capacity, uint32_t slots, el_kv kv)
    : model_(&model), sequences_(sequences), capacity_(capacity), slots_(slots), kv_(kv) {
  const file::Header& h = model.header();
  for (uint32_t stage = 0; stage < file::STAGES_WITH_CACHES; stage++) {
    stages_[stage].resize(size_t(this->slots(stage)) * caches(stage));
    for (uint32_t i = 0; i < h.kept[stage].count; i++) kept_floats_[stage] += model.kept[h.kept[stage].first + i];
    if (kept_floats_[stage]) kept_[stage].resize(this->slots(stage));
  }
}

KvLayout Caches::layout(uint32_t stage, uint32_t number) const {
  const file::Cache& found = cache(stage, number);
  return {found.kv_heads, found.head_dim, kv_ == EL_KV_F16 ? 2u : 4u};
}

void Caches::reserve(uint32_t stage, uint32_t slot, uint32_t cached, uint32_t end) {
  for (uint32_t i = 0; i < caches(stage); i++)
    if (!this->slot(stage, slot, i).reserve(layout(stage, i), cache(stage, i).window, cached, end))
      fail(EL_USAGE, "the sliding window has moved past token %u of slot %u; start the sequence again", cached, slot);
}

void Caches::trim(uint32_t stage, uint32_t slot, uint32_t tokens) {
  for (uint32_t i = 0; i < caches(stage); i++) this->slot(stage, slot, i).trim(tokens);
}

bool Caches::can_truncate(uint32_t cached, uint32_t tokens) const {
  if (tokens >= cached || tokens == 0) return tokens <= cached;
  const auto holds = [&](const file::Cache& cache) {
    return !cache.window || cached - tokens <= SLACK || uint64_t(cached) < uint64_t(cache.window) + SLACK;
  };
  return std::all_of(model_->caches.begin(), model_->caches.end(), holds);
}

size_t Caches::bytes() const {
  size_t found = 0;
  for (uint32_t stage = 0; stage < file::STAGES_WITH_CACHES; stage++)
    for (uint32_t slot = 0; slot < slots(stage); slot++)
      for (uint32_t i = 0; i < caches(stage); i++)
        found += this->slot(stage, slot, i).held() * layout(stage, i).block();
  return found;
}

size_t Caches::row_bytes(uint32_t stage) const {
  size_t found = 0;
  for (uint32_t i = 0; i < caches(stage); i++) found += layout(stage, i).row();
  return found;
}

void Caches::read_rows(uint32_t stage, uint32_t slot, uint32_t first, uint32_t count, uint8_t* rows) const {
  for (uint32_t token = first; token < first + count; token++) {
    for (uint32_t i = 0; i < caches(stage); i++) {
      const KvLayout layout = this->layout(stage, i);
      uint8_t* block = this->slot(stage, slot, i).block(token / TILE);
      block ? move_token(layout, token, block, rows, false) : void(std::memset(rows, 0, layout.row()));
      rows += layout.row();
    }
  }
}

void Caches::write_rows(uint32_t stage, uint32_t slot, uint32_t first, uint32_t count, const uint8_t* rows) {
  reserve(stage, slot, first, first + count);
  for (uint32_t token = first; token < first + count; token++) {
    for (uint32_t i = 0; i < caches(stage); i++) {
      const KvLayout layout = this->layout(stage, i);
      move_token(layout, token, this->slot(stage, slot, i).block(token / TILE), const_cast<uint8_t*>(rows), true);
      rows += layout.row();
    }
  }
}

void Caches::copy(uint32_t stage, uint32_t slot, uint32_t to, const Caches& source, uint32_t source_slot,
    uint32_t first, uint32_t count) {
  if (count) reserve(stage, slot, to, to + count);
  std::vector<uint8_t> row(row_bytes(stage));
  for (uint32_t i = 0; i < caches(stage) && count; i++) {
    const KvLayout layout = this->layout(stage, i);
    for (uint32_t done = 0; done < count;) {
      const uint32_t from = first + done, goal = to + done;
      uint8_t* block = this->slot(stage, slot, i).block(goal / TILE);
      uint8_t* old = source.slot(stage, source_slot, i).block(from / TILE);
      const bool whole = from % TILE == 0 && goal % TILE == 0 && count - done >= TILE;
      if (block && old && whole) {
        std::memcpy(block, old, layout.block());
      } else if (block && old) {
        move_token(layout, from, old, row.data(), false);
        move_token(layout, goal, block, row.data(), true);
      }
      done += whole ? TILE : 1;
    }
  }
  if (kept_floats_[stage]) {
    const KeptRows& there = source.kept(stage, source_slot);
    if (there.tokens && there.tokens == first + count) kept(stage, slot) = {to + count, there.rows};
  }
}

}  // namespace edgeloop
