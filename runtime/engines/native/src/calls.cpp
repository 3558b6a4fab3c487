#include "calls.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "error.h"

namespace edgeloop {

using file::NONE;

namespace {

constexpr uint32_t MAX_ROWS = 128;  // of a pass, unless a row sees later ones

// Runs a pass, and writes down what its nodes cost where somebody asks.
void run_pass(el_model& model, const Compiled& what, Pass& pass, int kind) {
  if (!model.profile) return pass.run(kind);
  const size_t threads = size_t(model.team->threads());
  Spent spent;
  spent.steps.assign(threads, std::vector<Spent::Of>(what.plan.steps.size()));
  spent.nodes.assign(threads, std::vector<uint64_t>(what.program.nodes.size()));
  struct Asked {
    Workspace& space;
    ~Asked() { space.spent = nullptr; }
  } asked{model.space};
  model.space.spent = &spent;
  pass.run(kind);
  for (size_t s = 0; s < what.plan.steps.size(); s++) {  // attention and experts are not taken node by node
    const Step& step = what.plan.steps[s];
    if (step.kind != Step::ATTEND && step.kind != Step::EXPERTS) continue;
    for (size_t t = 0; t < threads; t++)
      for (uint32_t i : step.nodes) spent.nodes[t][i] += spent.steps[t][s].work / step.nodes.size();
  }
  for (size_t i = 0; i < what.program.nodes.size(); i++) {
    const Node& node = what.program.nodes[i];
    uint64_t most = 0;
    for (const auto& thread : spent.nodes) most = std::max(most, thread[i]);
    const uint32_t outputs = node.y == NONE ? 0 : what.program.sizes[node.y];
    model.profile->nodes.push_back({model.profile->calls, uint32_t(what.program.role), node.kind, outputs, most});
  }
}

// One stage on some lanes: cut into passes, what comes in is put where the program reads it, what it gives is taken.
class StageCall {
 public:
  StageCall(el_session& session, const Compiled& what, const Io& io)
      : session_(session), what_(what), program_(what.program), io_(io), stage_(program_.caches_of()),
        kept_(stage_ == NONE ? 0 : session.caches.kept_floats(stage_)) {}

  void run(std::vector<Asked>& lanes) {
    if (program_.per_depth)  // rows of one depth are multiplied together
      std::stable_sort(lanes.begin(), lanes.end(), [](const Asked& a, const Asked& b) { return a.depth < b.depth; });
    for (const Asked& lane : lanes) check_kept(lane);
    if (session_.model.profile) session_.model.profile->calls++;
    for (const Asked& lane : lanes) {
      if (program_.whole_lanes && rows_.count && rows_.count + lane.tokens > MAX_ROWS) flush();
      for (uint32_t done = 0; done < lane.tokens;) {
        if (rows_.count >= MAX_ROWS) flush();
        const uint32_t room = program_.whole_lanes ? lane.tokens : MAX_ROWS - rows_.count;
        const uint32_t taken = std::min(lane.tokens - done, room);
        add(lane, done, taken);
        done += taken;
      }
    }
    flush();
  }

 private:
  void check_kept(const Asked& lane) const {
    if (!kept_ || lane.cached == 0) return;
    const uint32_t tokens = session_.caches.kept(stage_, lane.slot).tokens;
    if (tokens != lane.cached)
      fail(EL_USAGE,
          "%u tokens before the next one, but the row that is kept for it is that of token %u; this model's shift takes "
          "tokens in order, start again",
          lane.cached, tokens);
  }

  void add(const Asked& lane, uint32_t done, uint32_t taken) {
    const uint32_t before = lane.cached + done;
    if (stage_ != NONE) session_.caches.reserve(stage_, lane.slot, before, before + taken);
    if (program_.first_slots && lane.first_slot != lane.slot)
      session_.caches.reserve(stage_, lane.first_slot, before, before + taken);
    Lane piece;
    piece.rows = taken;
    piece.depth = lane.depth;
    piece.cached = before;
    piece.slot = lane.slot;
    piece.first_slot = lane.first_slot;
    piece.prefix = lane.cached == 0 ? lane.tokens : 0;
    rows_.add(piece);
    for (uint32_t i = 0; i < taken; i++) {
      const size_t row = lane.row + done + i;
      places_.push_back(row);
      const int64_t position = lane.positions ? lane.positions[done + i] : 0;
      rows_.positions.push_back(uint32_t(position));
      if (program_.role != Role::prologue) continue;
      rows_.hosts[file::IDS].push_back(io_.ids[row]);
      rows_.hosts[file::POSITIONS].push_back(position);
      rows_.hosts[file::TYPES].push_back(io_.types && program_.model->header().token_types ? io_.types[row] : 0);
    }
  }

  void flush() {
    if (!rows_.count) return;
    if (session_.stop.exchange(false)) fail(EL_STOPPED, "stopped");
    el_model& model = session_.model;
    keep();
    float* output = program_.role == Role::head ? io_.out + places_.front() * io_.out_width : nullptr;
    Caches* caches = stage_ == NONE ? nullptr : &session_.caches;
    Pass pass(what_, *model.kernels, model.turns, model.space, *model.team, caches, rows_, output);
    size_t column = 0;
    for (uint32_t i = 0; i < program_.inputs && program_.role != Role::prologue; column += program_.sizes[i], i++) {
      const Value value = pass.input(i);
      for (uint32_t m = 0; m < rows_.count; m++)
        std::memcpy(value.row(m), io_.in + source(places_[m]) * io_.in_width + column,
            program_.sizes[i] * sizeof(float));
    }
    run_pass(model, what_, pass, kind_of(program_.role, rows_.count));
    column = 0;
    for (uint32_t value : program_.outputs) {
      const Value given = pass.result(value);
      for (uint32_t m = 0; m < rows_.count && what_.plan.values[value].place != Place::output; m++)
        std::memcpy(io_.out + places_[m] * io_.out_width + column, given.row(m),
            program_.sizes[value] * sizeof(float));
      column += program_.sizes[value];
    }
    for (const Lane& lane : rows_.lanes) {
      if (!lane.after) continue;
      KeptRows& kept = session_.caches.kept(stage_, lane.slot);
      kept.tokens = lane.cached + lane.rows;
      kept.rows.assign(lane.after, lane.after + kept_);
    }
    session_.rows += rows_.count;
    session_.threads = uint32_t(model.team->count());
    rows_.clear();
    places_.clear();
  }

  // Where the rows that Shift keeps come from and go to.
  void keep() {
    if (!kept_ || program_.role == Role::fill) return;
    float* room = session_.model.space.kept.reserve(kept_ * rows_.lanes.size());
    for (size_t i = 0; i < rows_.lanes.size(); i++) {
      Lane& lane = rows_.lanes[i];
      lane.before = lane.cached ? session_.caches.kept(stage_, lane.slot).rows.data() : nullptr;
      lane.after = room + i * kept_;
    }
  }

  size_t source(size_t row) const { return picked ? (*picked)[row] : row; }

 public:
  const std::vector<size_t>* picked = nullptr;  // of a head: the row of `in` that each of its rows is made of

 private:
  el_session& session_;
  const Compiled& what_;
  const Program& program_;
  const Io& io_;
  uint32_t stage_;
  size_t kept_;
  Rows rows_;
  std::vector<size_t> places_;  // the caller's row of each
};

void zero_rows(const std::vector<size_t>& rows, float* out, size_t width) {
  for (size_t row : rows) std::memset(out + row * width, 0, width * sizeof(float));
}

void given(const void* pointer, const char* name) {
  if (!pointer) fail(EL_USAGE, "%s is NULL", name);
}

void check_ids(const Lanes& lanes, const int64_t* ids, const int64_t* types, const file::Header& h) {
  for (const Asked& lane : lanes.lanes) {
    for (size_t row = lane.row; row < lane.row + lane.tokens; row++) {
      if (ids[row] < 0 || ids[row] >= h.vocab_size)
        fail(EL_USAGE, "token id %lld, wanted 0 to %u", (long long)ids[row], h.vocab_size - 1);
      if (types && h.token_types && (types[row] < 0 || types[row] >= h.token_types))
        fail(EL_USAGE, "token type %lld, wanted 0 to %u", (long long)types[row], h.token_types - 1);
    }
  }
}

}  // namespace

int kind_of(Role role, uint32_t rows) {
  constexpr uint32_t STEPS[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 127, 128};
  const auto step = std::find_if(std::begin(STEPS), std::end(STEPS), [&](uint32_t most) { return rows <= most; });
  return int(step - std::begin(STEPS)) * Paces::PROGRAMS + int(role);
}

void run_lanes(el_session& session, const Compiled& what, std::vector<Asked> lanes, const Io& io) {
  StageCall(session, what, io).run(lanes);
}

void run_blocks(el_session& session, std::vector<Asked> all, const Io& io, bool fill) {
  for (const Asked& lane : all) session.model.at_depth(lane.depth, fill);  // an error before anything is written
  std::stable_sort(all.begin(), all.end(), [](const Asked& a, const Asked& b) { return a.depth < b.depth; });
  while (!all.empty()) {
    const Compiled* what = &session.model.at_depth(all.front().depth, fill);
    const auto same = [&](const Asked& lane) { return &session.model.at_depth(lane.depth, fill) == what; };
    const auto rest = std::stable_partition(all.begin(), all.end(), same);
    std::vector<Asked> now(all.begin(), rest);
    all.erase(all.begin(), rest);
    run_lanes(session, *what, std::move(now), io);
  }
}

void run_head(el_session& session, const float* in, const std::vector<size_t>& rows, float* logits) {
  const Program& program = session.model.head.program;
  Io io;
  io.in = in;
  io.in_width = session.model.epilogue.program.output_width();
  io.out = logits;
  io.out_width = program.output_width();
  StageCall call(session, session.model.head, io);
  call.picked = &rows;
  std::vector<Asked> lanes = {{0, 0, uint32_t(rows.size()), 0, 0, nullptr, 0}};
  call.run(lanes);
}

void call_prologue(el_session& session, const el_lanes* asked, const int64_t* ids, const int64_t* types,
    float* state) {
  given(ids, "ids");
  given(state, "state");
  Lanes lanes = check_lanes(session, asked, file::PROLOGUE);
  const Model& model = *session.model.model;
  check_ids(lanes, ids, types, model.header());
  Io io;
  io.ids = ids;
  io.types = types;
  io.out = state;
  io.out_width = model.width();
  run_lanes(session, session.model.prologue, std::move(lanes.lanes), io);
  zero_rows(lanes.padding, state, io.out_width);
}

void call_block(el_session& session, const el_lanes* asked, const float* state, float* out, bool fill) {
  given(state, "state");
  if (!fill) given(out, "out");
  Lanes lanes = check_lanes(session, asked, file::BLOCK);
  Io io;
  io.in = state;
  io.in_width = io.out_width = session.model.model->width();
  io.out = out;
  run_blocks(session, std::move(lanes.lanes), io, fill);
  if (!fill) zero_rows(lanes.padding, out, io.out_width);
}

void call_epilogue(el_session& session, const el_lanes* asked, const float* state, const int64_t* rows,
    uint32_t wanted, float* logits) {
  given(state, "state");
  if (wanted) given(rows, "rows"), given(logits, "logits");
  Lanes lanes = check_lanes(session, asked, file::EPILOGUE);
  const Program& program = session.model.epilogue.program;
  std::vector<size_t> picked;
  for (uint32_t i = 0; i < wanted; i++) {
    if (rows[i] < 0 || size_t(rows[i]) >= lanes.rows)
      fail(EL_USAGE, "logits of row %lld are wanted, and there are %zu", (long long)rows[i], lanes.rows);
    picked.push_back(size_t(rows[i]));
  }
  Io io;
  io.in = state;
  io.in_width = session.model.model->width();
  io.out_width = program.output_width();
  io.out = session.model.hidden.reserve(lanes.rows * io.out_width);
  zero_rows(lanes.padding, io.out, io.out_width);
  run_lanes(session, session.model.epilogue, std::move(lanes.lanes), io);
  if (wanted) run_head(session, io.out, picked, logits);
}

void call_prompt(el_session& session, const el_lanes* asked, const int64_t* ids, uint32_t depths, float* logits) {
  given(ids, "ids");
  Lanes lanes = check_lanes(session, asked, file::PROLOGUE);
  if (lanes.lanes.size() != 1) fail(EL_USAGE, "a prompt of %zu lanes, wanted 1", lanes.lanes.size());
  el_model& model = session.model;
  check_ids(lanes, ids, nullptr, model.model->header());
  const Asked own = lanes.lanes.front();
  depths = depths ? depths : model.depths();
  for (uint32_t depth = 0; depth < depths; depth++) model.at_depth(depth, false);
  Io io;
  io.ids = ids;
  io.in_width = io.out_width = model.model->width();
  io.in = io.out = model.states.reserve(lanes.rows * io.in_width);
  run_lanes(session, model.prologue, {own}, io);
  const uint32_t slots = session.caches.slots_per_sequence();
  for (uint32_t depth = 0; depth < depths; depth++) {
    Asked lane = own;
    lane.depth = depth;
    lane.first_slot = own.slot * slots;
    lane.slot = lane.first_slot + depth % slots;
    run_lanes(session, model.at_depth(depth, false), {lane}, io);
  }
  const Program& program = model.epilogue.program;
  if (!logits && program.memories.empty() && !program.kept().count) return;
  Io end = io;
  end.out_width = program.output_width();
  end.out = model.hidden.reserve(lanes.rows * end.out_width);
  run_lanes(session, model.epilogue, {own}, end);
  if (logits) run_head(session, end.out, {own.row + own.tokens - 1}, logits);
}

}  // namespace edgeloop
