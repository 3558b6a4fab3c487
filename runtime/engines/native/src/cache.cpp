#include "cache.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "error.h"

namespace edgeloop {

using file::TILE;

namespace {

[[noreturn]] void moved_past(uint32_t cached, uint32_t slot) {
  fail(EL_USAGE, "the sliding window has moved past token %u of slot %u; start the sequence again", cached, slot);
}

}  // namespace

const Block Slot::NOTHING;

void Slot::put(uint32_t b, Block block) {
  blocks_[b] = std::move(block);
  addresses_[b] = blocks_[b].get();
}

bool Slot::move_on(uint32_t window, uint32_t cached, std::vector<Block>& spare) {
  if (cached == 0) first_ = 0;
  uint32_t seen = 0;  // the first token that a new row sees
  if (window && cached + 1 > window) seen = cached + 1 - window;
  if (seen < first_) return false;
  const uint32_t kept = seen > SLACK ? (seen - SLACK) / TILE : 0;
  for (uint32_t b = first_ / TILE; b < kept && b < blocks_.size(); b++) {
    if (blocks_[b] && blocks_[b].alone()) spare.push_back(std::move(blocks_[b]));
    put(b, Block());
  }
  first_ = std::max(first_, kept * TILE);
  return true;
}

bool Slot::reserve(const KvLayout& layout, uint32_t window, uint32_t cached, uint32_t end) {
  std::vector<Block> spare;
  if (!move_on(window, cached, spare)) return false;
  make_room(layout, cached, end, spare);
  return true;
}

void Slot::make_room(const KvLayout& layout, uint32_t cached, uint32_t end, std::vector<Block>& spare) {
  const uint32_t count = (end + TILE - 1) / TILE;
  if (blocks_.size() < count) {
    blocks_.resize(count);
    addresses_.resize(count, nullptr);
  }
  for (uint32_t b = first_ / TILE; b < count; b++) {
    if (blocks_[b] && b >= cached / TILE && !blocks_[b].alone()) put(b, blocks_[b].copy());
    if (blocks_[b]) continue;
    if (spare.empty()) {
      put(b, Block::zeros(layout.block()));
    } else {
      put(b, std::move(spare.back()));
      spare.pop_back();
    }
  }
}

void Slot::share(uint32_t b, Block shared) {
  if (b >= blocks_.size()) {
    blocks_.resize(b + 1);
    addresses_.resize(b + 1, nullptr);
  }
  put(b, std::move(shared));
}

void Slot::begins(uint32_t token) { first_ = std::max(first_, (token + TILE - 1) / TILE * TILE); }

void Slot::trim(uint32_t tokens) {
  const uint32_t count = (tokens + TILE - 1) / TILE;
  if (count < blocks_.size()) {
    blocks_.resize(count);
    addresses_.resize(count);
  }
  if (!tokens) first_ = 0;
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
  return {found.kv_heads, found.head_dim, CacheKind(kv_)};
}

void Caches::reserve(uint32_t stage, uint32_t slot, uint32_t cached, uint32_t end) {
  for (uint32_t i = 0; i < caches(stage); i++)
    if (!this->slot(stage, slot, i).reserve(layout(stage, i), cache(stage, i).window, cached, end))
      moved_past(cached, slot);
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

KvBytes Caches::bytes() const {
  KvBytes found;
  std::vector<std::pair<const Block*, size_t>> shared;  // blocks with several users, and their bytes
  for (uint32_t stage = 0; stage < file::STAGES_WITH_CACHES; stage++) {
    for (uint32_t slot = 0; slot < slots(stage); slot++) {
      for (uint32_t i = 0; i < caches(stage); i++) {
        const Slot& held = this->slot(stage, slot, i);
        const size_t size = layout(stage, i).block();
        for (uint32_t b = 0; b < held.count(); b++) {
          const Block& block = held.block(b);
          if (!block) continue;
          if (block.alone()) found.all += size;
          else shared.emplace_back(&block, size);
        }
      }
    }
  }
  std::sort(shared.begin(), shared.end(),
      [](const auto& a, const auto& b) { return std::less<>()(a.first->get(), b.first->get()); });
  for (auto begin = shared.begin(); begin != shared.end();) {
    const auto other = [&](const auto& each) { return each.first->get() != begin->first->get(); };
    const auto end = std::find_if(begin, shared.end(), other);
    found.all += begin->second;
    if (begin->first->users() > uint32_t(end - begin)) found.shared += begin->second;
    begin = end;
  }
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
      const Block& block = this->slot(stage, slot, i).block(token / TILE);
      block ? layout.read(token, block.get(), rows) : void(std::memset(rows, 0, layout.row()));
      rows += layout.row();
    }
  }
}

void Caches::write_rows(uint32_t stage, uint32_t slot, uint32_t first, uint32_t count, const uint8_t* rows) {
  reserve(stage, slot, first, first + count);
  for (uint32_t token = first; token < first + count; token++) {
    for (uint32_t i = 0; i < caches(stage); i++) {
      const KvLayout layout = this->layout(stage, i);
      layout.write(token, rows, this->slot(stage, slot, i).block(token / TILE).get());
      rows += layout.row();
    }
  }
}

void Caches::copy(uint32_t stage, uint32_t slot, uint32_t to, const Caches& source, uint32_t source_slot,
    uint32_t first, uint32_t count) {
  std::vector<uint8_t> row(row_bytes(stage));
  for (uint32_t i = 0; i < caches(stage) && count; i++) {
    const KvLayout layout = this->layout(stage, i);
    const uint32_t window = cache(stage, i).window;
    Slot& goal = this->slot(stage, slot, i);
    const Slot& old = source.slot(stage, source_slot, i);
    std::vector<Block> spare;
    if (!goal.move_on(window, to, spare)) moved_past(to, slot);
    if (old.first() > first) goal.begins(old.first() - first + to);
    for (uint32_t done = 0, rows; done < count; done += rows) {
      const uint32_t from = first + done, at = to + done;
      const bool alike = from % TILE == 0 && at % TILE == 0;
      rows = alike ? std::min(count - done, TILE) : 1;
      const Block block = old.block(from / TILE);
      if (alike && (rows == TILE || !goal.block(at / TILE))) {
        goal.share(at / TILE, block);
        continue;
      }
      goal.make_room(layout, at, at + rows, spare);
      const Block& into = goal.block(at / TILE);
      for (uint32_t r = 0; r < rows && block && into; r++) {
        layout.read(from + r, block.get(), row.data());
        layout.write(at + r, row.data(), into.get());
      }
    }
  }
  if (kept_floats_[stage]) {
    const KeptRows& there = source.kept(stage, source_slot);
    if (there.tokens && there.tokens == first + count) kept(stage, slot) = {to + count, there.rows};
  }
}

}  // namespace edgeloop
