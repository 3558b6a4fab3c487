#include "pass.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "error.h"
#include "ops/ops.h"
#include "platform.h"

namespace edgeloop {

using file::NONE, file::TILE;

namespace {

size_t filled_up(size_t n) { return (n + TILE - 1) / TILE * TILE; }

// Learned keys and values in blocks.
Learned learn(const Model& model, const Memory& memory, const Kernels& kernels) {
  Learned found;
  const file::Op& op = *memory.learned;
  const KvLayout layout{memory.kv_heads, memory.head_dim, CacheKind::float32};
  found.count = model.vectors[op.weights[0]].rows;
  const uint32_t blocks = (found.count + TILE - 1) / TILE;
  found.memory = Block::zeros(size_t(blocks) * layout.block());
  for (uint32_t b = 0; b < blocks; b++) found.blocks.push_back(found.memory.get() + b * layout.block());
  for (uint32_t t = 0; t < found.count; t++) {
    uint8_t* block = found.memory.get() + t / TILE * layout.block();
    for (uint32_t h = 0; h < layout.kv_heads; h++) {
      const size_t start = size_t(h) * layout.head_dim;
      kernels.store_key[0](model.vector(op.weights[0], t) + start, int32_t(layout.head_dim), int32_t(t % TILE),
          block + layout.keys(h));
      kernels.store_value[0](model.vector(op.weights[1], t) + start, int32_t(layout.head_dim), int32_t(t % TILE),
          block + layout.values(h));
    }
  }
  return found;
}

}  // namespace

void Buffer::Free::operator()(float* memory) const { free_aligned(memory); }

float* Buffer::reserve(size_t floats) {
  if (floats > size_) {
    memory_.reset();
    size_ = 0;
    void* memory = allocate_aligned(filled_up(floats) * sizeof(float));
    if (!memory) throw std::bad_alloc();
    memory_.reset(static_cast<float*>(memory));
    size_ = filled_up(floats);
    std::memset(memory_.get(), 0, size_ * sizeof(float));
  }
  return memory_.get();
}

size_t Workspace::bytes() const {
  size_t found = shared.bytes() + memory.bytes() + kept.bytes();
  for (const auto* buffers : {&own, &scratch})
    for (const Buffer& buffer : *buffers) found += buffer.bytes();
  return found;
}

Compiled compile(const Model& model, uint32_t stage, Role role, bool int8, const Kernels& kernels) {
  Compiled found;
  found.program = read_program(model, stage, role, int8);
  found.plan = make_plan(found.program);
  for (const Memory& memory : found.program.memories)
    found.learned.push_back(memory.learned ? learn(model, memory, kernels) : Learned());
  return found;
}

void Rows::clear() {
  count = 0;
  lanes.clear();
  runs.clear();
  lane_of.clear();
  positions.clear();
  for (auto& host : hosts) host.clear();
}

uint32_t Rows::add(const Lane& lane) {
  const uint32_t first = count;
  lanes.push_back(lane);
  lanes.back().first = first;
  count += lane.rows;
  lane_of.resize(count, uint32_t(lanes.size() - 1));
  if (runs.empty() || runs.back().depth != lane.depth) runs.push_back({first, first, lane.depth});
  runs.back().last = count;
  return first;
}

Pass::Pass(const Compiled& what, const Kernels& kernels, Turns& turns, Workspace& space, Team& team, Caches* caches,
    Rows& rows, float* output)
    : what(what), program(what.program), plan(what.plan), model(*what.program.model), kernels(kernels), turns(turns),
        space(space), team(team),
      caches(caches), rows(rows), output(output) {
  for (uint32_t position : rows.positions) turns.make(position);
  const size_t threads = size_t(team.threads());
  capacity_ = rows.count;
  space.shared.reserve(plan.floats * capacity_);
  space.own.resize(threads);
  space.scratch.resize(threads);

  size_t longest = TILE;  // tokens that a row attends to, at most
  for (Lane& lane : rows.lanes) longest = std::max<size_t>(longest, lane.cached + lane.rows);
  for (const Learned& learned : what.learned) longest = std::max<size_t>(longest, learned.count);
  attend_floats_ = attend_floats(program, longest);
  size_t scratch = std::max(plan.scratch, attend_floats_);
  for (const Node& node : program.nodes)
    if (node.kind == file::EXPERTS) scratch = std::max(scratch, experts_floats(program, node));
  for (size_t i = 0; i < threads; i++) {
    space.own[i].reserve(threads > 1 ? plan.floats * NARROW : 0);
    space.scratch[i].reserve(scratch);
  }
  for (uint32_t l = 0; l < rows.lanes.size(); l++) {
    const Lane& lane = rows.lanes[l];
    for (uint32_t done = 0; done < lane.rows; done += ATTEND_ROWS)
      groups_.push_back({l, lane.first + done, lane.first + std::min(done + ATTEND_ROWS, lane.rows)});
  }

  if (plan.memory) {  // of K and V of these rows alone
    uint32_t blocks = 0;
    for (Lane& lane : rows.lanes) {
      lane.block = blocks;
      blocks += (lane.rows + TILE - 1) / TILE;
    }
    memory_tokens_ = size_t(blocks) * TILE;
    float* start = space.memory.reserve(plan.memory * memory_tokens_);
    space.addresses.assign(program.memories.size(), {});
    for (size_t i = 0; i < program.memories.size(); i++) {
      const Memory& m = program.memories[i];
      if (m.cache != NONE || m.learned) continue;
      const size_t block = 2 * size_t(m.kv_heads) * m.head_dim * TILE;
      for (uint32_t b = 0; b < blocks; b++)
        space.addresses[i].push_back(start + plan.memories[i] * memory_tokens_ + b * block);
    }
  }
}

Value Pass::value_of(uint32_t value, int worker, bool narrow) const {
  const Lies& lies = plan.values[value];
  const ptrdiff_t stride = ptrdiff_t(filled_up(program.sizes[value]));
  if (lies.place == Place::output) return {output, ptrdiff_t(program.output_width())};
  if (lies.place == Place::own && narrow) return {space.own[size_t(worker)].data() + lies.offset * NARROW, stride};
  return {space.shared.data() + lies.offset * capacity_, stride};
}

Codes Pass::codes_of(uint32_t codes, int worker, bool narrow) const {
  const Lies& lies = plan.codes[codes];
  const CodesRow row = codes_row(program, program.codes[codes]);
  const bool own = lies.place == Place::own && narrow;
  const size_t rows = own ? NARROW : capacity_;
  float* start = (own ? space.own[size_t(worker)] : space.shared).data() + lies.offset * rows;
  return {reinterpret_cast<int8_t*>(start), start + row.scales * rows,
      reinterpret_cast<int32_t*>(start + row.sums * rows)};
}

Held Pass::held(uint32_t memory, const Lane& lane, bool depth_0) const {
  const Memory& m = program.memories[memory];
  const KvLayout floats{m.kv_heads, m.head_dim, CacheKind::float32};
  if (m.learned) return {floats, what.learned[memory].blocks.data(), 0};
  if (m.cache == NONE) return {floats, space.addresses[memory].data() + lane.block, 0};
  const uint32_t stage = program.caches_of(), slot = depth_0 || m.first_slot ? lane.first_slot : lane.slot;
  return {caches->layout(stage, m.cache), caches->slot(stage, slot, m.cache).blocks(),
      lane.cached};
}

void Pass::run(int kind) {
  team.run(kind, [this](int worker) { work(worker); });
}

void Pass::work(int worker) {
  const bool narrow = rows.count <= NARROW && team.count() > 1;
  if (worker == 0) was_narrow_ = narrow;
  for (size_t i = 0; i < plan.steps.size(); i++) {
    const Step& step = plan.steps[i];
    const uint64_t start = space.spent ? ticks() : 0;
    do_step(step, worker, narrow);
    const uint64_t done = space.spent ? ticks() : 0;
    if (step.waits || !narrow) team.barrier(worker);
    if (space.spent) space.spent->add(worker, i, done - start, ticks() - done);
  }
}

void Pass::do_step(const Step& step, int worker, bool narrow) {
  switch (step.kind) {
    case Step::ROWS: {
      if (narrow) return do_rows(step, worker, narrow, 0, rows.count);
      constexpr uint32_t PIECES = 4;  // of a thread
      const uint32_t blocks = uint32_t(team.count()), pieces = blocks * PIECES;
      return team.take(int(pieces), worker, [&](int i) {
        do_rows(step, worker, narrow, rows.count * uint32_t(i) / pieces, rows.count * uint32_t(i + 1) / pieces);
      });
    }
    case Step::COLUMNS:
      return team.take(int(step.units * row_blocks()), worker, [&](int i) {
        const uint32_t block = uint32_t(i) / step.units;
        do_columns(step, worker, narrow, uint32_t(i) % step.units, first_of_block(block), first_of_block(block + 1));
      });
    case Step::ATTEND:
      return team.take(int(attend_units(step)), worker, [&](int i) { do_attend(step, worker, narrow, uint32_t(i)); });
    case Step::EXPERTS:
      return team.take(int(rows.count), worker, [&](int i) { do_experts(step, worker, narrow, uint32_t(i)); });
  }
}

void Pass::do_nodes(const std::vector<uint32_t>& nodes, const Piece& piece) {
  if (!space.spent || space.spent->nodes.empty()) {
    for (uint32_t i : nodes) OPS[program.nodes[i].kind](piece, program.nodes[i]);
    return;
  }
  for (uint32_t i : nodes) {
    const uint64_t start = ticks();
    OPS[program.nodes[i].kind](piece, program.nodes[i]);
    space.spent->nodes[size_t(piece.worker)][i] += ticks() - start;
  }
}

void Pass::do_rows(const Step& step, int worker, bool narrow, uint32_t first, uint32_t last) {
  for (uint32_t m = first; m < last; m++) {
    do_nodes(step.nodes, {*this, worker, narrow, m, m + 1});
  }
}

// A whole number of the products' rows, but for the last block: as many at once as any kernel takes.
uint32_t Pass::first_of_block(uint32_t block) const {
  constexpr uint32_t AT_ONCE = 12;
  const uint32_t blocks = row_blocks(), even = rows.count * block / blocks;
  return block == blocks ? rows.count : (even + AT_ONCE / 2) / AT_ONCE * AT_ONCE;
}

void Pass::do_columns(const Step& step, int worker, bool narrow, uint32_t unit, uint32_t first_row, uint32_t last_row) {
  const auto begins_after = [](uint32_t u, const Domain& d) { return u < d.first_unit; };
  const auto after = std::upper_bound(step.domains.begin(), step.domains.end(), unit, begins_after);
  const Domain& domain = *(after - 1);
  const uint32_t begin = (unit - domain.first_unit) * domain.piece, end = std::min(begin + domain.piece, domain.size);
  for (uint32_t first = first_row; first < last_row; first += ROW_TILE) {
    const Piece piece{*this, worker, narrow, first, std::min(first + ROW_TILE, last_row), begin, end,
        uint32_t(filled_up(domain.piece))};
    do_nodes(domain.nodes, piece);
  }
}

uint32_t Pass::attend_units(const Step& step) const {
  uint32_t units = 0;
  for (uint32_t i : step.nodes) units += uint32_t(groups_.size()) * program.nodes[i].op->numbers[1];
  return units;
}

void Pass::do_attend(const Step& step, int worker, bool narrow, uint32_t unit) {
  for (uint32_t i : step.nodes) {
    const Node& node = program.nodes[i];
    const uint32_t kv_heads = node.op->numbers[1], units = uint32_t(groups_.size()) * kv_heads;
    if (unit >= units) {
      unit -= units;
      continue;
    }
    const Group& group = groups_[unit / kv_heads];
    return attend(*this, node, worker, narrow, rows.lanes[group.lane], group.first, group.last, unit % kv_heads,
        space.scratch[size_t(worker)].data());
  }
}

void Pass::do_experts(const Step& step, int worker, bool narrow, uint32_t row) {
  for (uint32_t i : step.nodes)
    experts(*this, program.nodes[i], worker, narrow, row, space.scratch[size_t(worker)].data());
}

}  // namespace edgeloop
