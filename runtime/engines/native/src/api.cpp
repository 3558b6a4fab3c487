// The C interface (edgeloop.h): arguments are checked, calls of one model take turns, and what is thrown becomes a code.
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "calls.h"
#include "guarded.h"

using namespace edgeloop;

namespace {

void check_slot(const el_session* session, uint32_t stage, uint32_t slot) {
  if (!session) fail(EL_USAGE, "session is NULL");
  if (stage >= file::STAGES_WITH_CACHES) fail(EL_USAGE, "there is no stage %u", stage);
  const uint32_t slots = session->caches.slots(stage);
  if (slot >= slots) fail(EL_USAGE, "slot %u, wanted 0 to %u", slot, slots - 1);
}

void check_rows(const el_session* session, uint32_t first, uint32_t count) {
  if (uint64_t(first) + count > session->caches.capacity())
    fail(EL_USAGE, "%u rows from %u on, and the capacity is %u", count, first, session->caches.capacity());
}

// By file::OpKind and InnerKind.
const char* const NODES[NODE_KINDS] = {"embed", "norm", "linear", "rotate", "attend", "attend_twice", "attend_learned",
    "act", "add", "mul", "scale", "softcap", "concat", "slice", "shift", "experts", "quantize", "keys", "values", "low"};

}  // namespace

namespace edgeloop {

int caught(char* error, void (*body)(void*), void* data) {
  const auto told = [&](el_code code, const char* text) {
    if (error) std::snprintf(error, EL_ERROR_SIZE, "%s", text);
    return int(code);
  };
  try {
    body(data);
    return EL_OK;
  } catch (const Error& found) {
    return told(found.code, found.text);
  } catch (const std::bad_alloc&) {
    return told(EL_MEMORY, "out of memory");
  } catch (const std::exception& found) {  // of the standard library: a size or a thread that the system has not
    return told(EL_MEMORY, found.what());
  } catch (...) {
    return told(EL_MEMORY, "unknown error");
  }
}

}  // namespace edgeloop

uint32_t el_abi(void) { return EL_ABI; }

const char* el_kernels(void) {
  const Kernels* found = choose_kernels();
  return found ? found->name : nullptr;
}

int el_open(const char* path, const el_open_options* options, el_model** model, char* error) {
  return guarded(error, [&] {
    if (!path || !model) fail(EL_USAGE, "path or model is NULL");
    el_open_options chosen = {};
    if (options) {
      check_struct(options->struct_bytes, sizeof chosen, "el_open_options");
      chosen = *options;
    }
    if (chosen.activations > EL_ACTIVATIONS_FLOAT) fail(EL_USAGE, "there are no activations %u", chosen.activations);
    *model = new el_model(Model::open(path), chosen);
  });
}

void el_close(el_model* model) { delete model; }

int el_model_info(const el_model* model, el_info* info, char* error) {
  return guarded(error, [&] {
    if (!model || !info) fail(EL_USAGE, "model or info is NULL");
    check_struct(info->struct_bytes, sizeof *info, "el_info");
    const file::Header& h = model->model->header();
    info->depths = model->depths();
    info->any_depth = model->any_depth();
    info->width = model->model->width();
    info->output = model->head.program.output_width();
    info->vocab_size = h.vocab_size;
    info->context_length = h.context_length;
    info->token_types = h.token_types;
    info->shares_kv = h.shares_kv;
    info->kept_rows = h.kept[file::BLOCK].count;
    info->threads = uint32_t(model->team->threads());
    info->activations = model->int8 ? EL_ACTIVATIONS_INT8 : EL_ACTIVATIONS_FLOAT;
    info->file_bytes = model->model->size();
    info->kernels = model->kernels->name;
  });
}

int el_session_new(el_model* model, const el_session_options* options, el_session** session, char* error) {
  return guarded(error, [&] {
    if (!model || !options || !session) fail(EL_USAGE, "model, options or session is NULL");
    check_struct(options->struct_bytes, sizeof *options, "el_session_options");
    *session = new el_session(*model, *options);
  });
}

void el_session_free(el_session* session) { delete session; }

void el_stop(el_session* session) {
  if (session) session->stop.store(true);
}

int el_prologue(el_session* session, const el_lanes* lanes, const int64_t* ids, const int64_t* types, float* state,
    char* error) {
  return computing(session, error, [&](el_session& s) { call_prologue(s, lanes, ids, types, state); });
}

int el_block(el_session* session, const el_lanes* lanes, const float* state, float* out, char* error) {
  return computing(session, error, [&](el_session& s) { call_block(s, lanes, state, out, false); });
}

int el_fill(el_session* session, const el_lanes* lanes, const float* state, char* error) {
  return computing(session, error, [&](el_session& s) { call_block(s, lanes, state, nullptr, true); });
}

int el_epilogue(el_session* session, const el_lanes* lanes, const float* state, const int64_t* rows, uint32_t wanted,
    float* logits, char* error) {
  return computing(session, error, [&](el_session& s) { call_epilogue(s, lanes, state, rows, wanted, logits); });
}

int el_prompt(el_session* session, const el_lanes* lanes, const int64_t* ids, uint32_t depths, float* logits,
    char* error) {
  return computing(session, error, [&](el_session& s) { call_prompt(s, lanes, ids, depths, logits); });
}

int el_can_truncate(const el_session* session, uint32_t cached, uint32_t tokens) {
  return session && session->caches.can_truncate(cached, tokens);
}

int el_trim(el_session* session, uint32_t stage, uint32_t slot, uint32_t tokens, char* error) {
  return guarded(error, [&] {
    check_slot(session, stage, slot);
    session->caches.trim(stage, slot, tokens);
  });
}

int el_copy(el_session* session, uint32_t stage, uint32_t slot, uint32_t to, const el_session* source,
    uint32_t source_slot, uint32_t first, uint32_t count, char* error) {
  return guarded(error, [&] {
    check_slot(session, stage, slot);
    check_slot(source, stage, source_slot);
    check_rows(session, to, count);
    check_rows(source, first, count);
    if (&session->model != &source->model || session->caches.kv() != source->caches.kv())
      fail(EL_USAGE, "rows of another model, or of another el_kv");
    const bool overlap = session == source && slot == source_slot && to < first + count && first < to + count;
    if (overlap && to != first) fail(EL_USAGE, "rows that overlap");
    if (!overlap) session->caches.copy(stage, slot, to, source->caches, source_slot, first, count);
  });
}

size_t el_row_bytes(const el_session* session, uint32_t stage) {
  return session && stage < file::STAGES_WITH_CACHES ? session->caches.row_bytes(stage) : 0;
}

int el_read_rows(const el_session* session, uint32_t stage, uint32_t slot, uint32_t first, uint32_t count,
    void* rows, char* error) {
  return guarded(error, [&] {
    check_slot(session, stage, slot);
    check_rows(session, first, count);
    if (!rows && count) fail(EL_USAGE, "rows is NULL");
    session->caches.read_rows(stage, slot, first, count, static_cast<uint8_t*>(rows));
  });
}

int el_write_rows(el_session* session, uint32_t stage, uint32_t slot, uint32_t first, uint32_t count,
    const void* rows, char* error) {
  return guarded(error, [&] {
    check_slot(session, stage, slot);
    check_rows(session, first, count);
    if (!rows && count) fail(EL_USAGE, "rows is NULL");
    if (count) session->caches.write_rows(stage, slot, first, count, static_cast<const uint8_t*>(rows));
  });
}

size_t el_kept_floats(const el_session* session, uint32_t stage) {
  return session && stage < file::STAGES_WITH_CACHES ? session->caches.kept_floats(stage) : 0;
}

int el_read_kept(const el_session* session, uint32_t stage, uint32_t slot, uint32_t* tokens, float* rows,
    char* error) {
  return guarded(error, [&] {
    check_slot(session, stage, slot);
    if (!tokens || !rows) fail(EL_USAGE, "tokens or rows is NULL");
    *tokens = 0;
    if (!session->caches.kept_floats(stage)) return;
    const KeptRows& kept = session->caches.kept(stage, slot);
    *tokens = kept.tokens;
    if (kept.tokens) std::memcpy(rows, kept.rows.data(), kept.rows.size() * sizeof(float));
  });
}

int el_write_kept(el_session* session, uint32_t stage, uint32_t slot, uint32_t tokens, const float* rows,
    char* error) {
  return guarded(error, [&] {
    check_slot(session, stage, slot);
    const size_t floats = session->caches.kept_floats(stage);
    if (!floats) return;
    if (tokens && !rows) fail(EL_USAGE, "rows is NULL");
    KeptRows& kept = session->caches.kept(stage, slot);
    kept.tokens = tokens;
    kept.rows.assign(rows, tokens ? rows + floats : rows);
  });
}

int el_session_stats(const el_session* session, el_stats* stats, char* error) {
  return guarded(error, [&] {
    if (!session || !stats) fail(EL_USAGE, "session or stats is NULL");
    check_struct(stats->struct_bytes, sizeof *stats, "el_stats");
    const std::lock_guard turn(session->model.computing);
    stats->threads = session->threads;
    stats->calls = session->calls;
    stats->rows = session->rows;
    const KvBytes held = session->caches.bytes();
    stats->kv_bytes = held.all;
    stats->shared_bytes = held.shared;
    stats->scratch_bytes =
        session->model.space.bytes() + session->model.states.bytes() + session->model.hidden.bytes();
  });
}

int el_profile(el_model* model, uint32_t on, char* error) {
  return guarded(error, [&] {
    if (!model) fail(EL_USAGE, "model is NULL");
    const std::lock_guard turn(model->computing);
    model->profile = on ? std::make_unique<Profile>() : nullptr;
  });
}

int el_profile_read(el_model* model, el_node_time* nodes, uint64_t room, uint64_t* count, char* error) {
  return guarded(error, [&] {
    if (!model || !count || (room && !nodes)) fail(EL_USAGE, "model, nodes or count is NULL");
    const std::lock_guard turn(model->computing);
    if (!model->profile) fail(EL_USAGE, "nothing was written down; call el_profile first");
    const std::vector<Profile::Of>& all = model->profile->nodes;
    const double each = model->profile->nanoseconds_a_tick();
    *count = all.size();
    for (size_t i = 0; i < all.size() && i < room; i++)
      nodes[i] = {all[i].call, all[i].role, all[i].kind, all[i].outputs, uint64_t(double(all[i].ticks) * each)};
  });
}

const char* el_node_name(uint32_t kind) { return kind < NODE_KINDS ? NODES[kind] : nullptr; }
