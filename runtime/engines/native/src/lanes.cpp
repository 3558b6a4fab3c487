// What a caller's arrays say of the lanes of a call, checked.
#include <algorithm>

#include "calls.h"
#include "error.h"

namespace edgeloop {

namespace {

constexpr uint32_t MAX_LANES = 1u << 20;

void given(const void* pointer, const char* name) {
  if (!pointer) fail(EL_USAGE, "%s is NULL", name);
}

// Two lanes that write K and V have different slots.
void check_slots(const std::vector<Asked>& lanes, bool shared) {
  std::vector<uint32_t> slots;
  for (const Asked& lane : lanes)
    if (!shared || lane.depth == 0) slots.push_back(lane.slot);
  std::sort(slots.begin(), slots.end());
  const auto twice = std::adjacent_find(slots.begin(), slots.end());
  if (twice != slots.end()) fail(EL_USAGE, "two lanes have slot %u, wanted one for each", *twice);
}

}  // namespace

Lanes check_lanes(const el_session& session, const el_lanes* asked, uint32_t stage) {
  given(asked, "lanes");
  const el_lanes& l = *asked;
  if (l.struct_bytes != sizeof(el_lanes))
    fail(EL_USAGE, "el_lanes of %u bytes, wanted %zu", l.struct_bytes, sizeof(el_lanes));
  if (l.count < 1 || l.count > MAX_LANES) fail(EL_USAGE, "%u lanes, wanted 1 to %u", l.count, MAX_LANES);
  given(l.depth, "depth");
  given(l.cached, "cached");
  given(l.tokens, "tokens");
  given(l.positions, "positions");
  const Caches& caches = session.caches;
  const file::Header& h = session.model.model->header();
  Lanes found;
  for (uint32_t b = 0; b < l.count; b++) {
    const int64_t tokens = l.tokens[b], cached = l.cached[b], slot = l.slots ? l.slots[b] : int64_t(l.first_slot) + b;
    const size_t row = l.padded ? size_t(b) * l.padded : found.rows;
    if (tokens < 0 || tokens > l.stride || (l.padded && tokens > l.padded))
      fail(EL_USAGE, "lane %u has %lld tokens, and there is room for %u", b, (long long)tokens, l.stride);
    for (size_t i = size_t(tokens); i < l.padded; i++) found.padding.push_back(row + i);
    found.rows = row + (l.padded ? l.padded : size_t(tokens));
    if (!tokens) continue;
    if (cached < 0 || cached + tokens > caches.capacity())
      fail(EL_USAGE, "lane %u has %lld cached and %lld new tokens, and the capacity is %u", b, (long long)cached,
          (long long)tokens, caches.capacity());
    if (slot < 0 || slot >= caches.slots(stage))
      fail(EL_USAGE, "lane %u has slot %lld, wanted 0 to %u", b, (long long)slot, caches.slots(stage) - 1);
    const int64_t* positions = l.positions + size_t(b) * l.stride;
    for (int64_t i = 0; i < tokens; i++)
      if (positions[i] < 0 || positions[i] >= h.context_length)
        fail(EL_USAGE, "lane %u has position %lld, wanted 0 to %u", b, (long long)positions[i], h.context_length - 1);
    uint32_t depth = 0, first = uint32_t(slot);
    if (stage == file::BLOCK) {
      if (l.depth[b] < 0 || l.depth[b] >= file::MAX_DEPTHS)
        fail(EL_USAGE, "lane %u has depth %lld", b, (long long)l.depth[b]);
      depth = uint32_t(l.depth[b]);
      const uint32_t deep = depth % caches.slots_per_sequence();
      if (deep > first && caches.caches(stage)) fail(EL_USAGE, "lane %u of depth %u has slot %u", b, depth, first);
      first -= std::min(deep, first);
    }
    found.lanes.push_back({depth, uint32_t(cached), uint32_t(tokens), uint32_t(slot), first, positions, row});
  }
  if (l.slots && caches.caches(stage)) check_slots(found.lanes, h.shares_kv);
  return found;
}

}  // namespace edgeloop
