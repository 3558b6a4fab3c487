// Calls with arguments by lot: each is an error code, or numbers.
#include "fuzz_calls.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine.h"

namespace edgeloop {

using test::Lot;

namespace {

constexpr uint32_t TOKENS = 5;

// Lanes that may be, and now and then such that may not.
struct Arrays {
  int64_t depth[2], positions[2 * TOKENS], ids[2 * TOKENS], rows[3];
  int32_t cached[2], tokens[2];
  el_lanes lanes = {};

  Arrays(Lot& lot, const el_model& model, uint32_t first_slot) {
    const file::Header& h = model.model->header();
    lanes.struct_bytes = sizeof lanes;
    lanes.count = 1 + lot.below(2);
    lanes.stride = TOKENS;
    lanes.padded = lot.below(2) ? TOKENS : 0;
    lanes.first_slot = first_slot;
    for (int b = 0; b < 2; b++) {
      depth[b] = lot.below(model.depths() + lot.below(2));
      cached[b] = int32_t(lot.below(8)) - int32_t(lot.below(16) == 0);
      tokens[b] = int32_t(lot.below(TOKENS + 1));
    }
    for (int64_t& position : positions) position = int64_t(lot.below(h.context_length)) - (lot.below(64) == 0);
    for (int64_t& id : ids) id = lot.below(h.vocab_size + (lot.below(64) == 0));
    for (int64_t& row : rows) row = lot.below(2 * TOKENS);
    lanes.depth = depth;
    lanes.cached = cached;
    lanes.tokens = tokens;
    lanes.positions = positions;
  }
};

// A decoder by lot: its policy, what it is told of its sequence, and a few tokens.
void decode_one(el_session* session, const el_model& model, Lot& lot) {
  char error[EL_ERROR_SIZE];
  const uint32_t depths = 1 + lot.below(4), width = model.model->width();
  std::vector<float> numbers(size_t(depths + 1) * 4 * (width + 8));
  for (float& x : numbers) x = float(lot.below(2001)) * 0.001f - 1;
  numbers[lot.below(uint32_t(numbers.size()))] = lot.below(2) ? NAN : INFINITY;
  const auto some = [&] { return lot.below(16) ? numbers.data() + lot.below(8) : nullptr; };
  el_policy policy = {sizeof policy, lot.below(8), lot.below(16) ? depths : lot.bits(), 1 + lot.below(depths), lot.below(6),
      lot.below(4) == 0, lot.below(5), lot.below(2), lot.below(8) == 0, lot.below(2), lot.below(5), 0.5f, 0.5f, some(), some(),
      some(), some(), lot.below(2) ? some() : nullptr, some(), some()};
  if (policy.hidden_count) policy.hidden_width = std::min(policy.hidden_width, 4u);
  el_decoder* decoder = nullptr;
  if (el_decoder_new(session, lot.below(3), &policy, &decoder, error) != EL_OK) return;
  std::vector<float> states(size_t(depths) * 3 * width, 0.5f);
  for (int round = 0; round < 6; round++) {
    el_sampling sampling = {sizeof sampling, lot.below(4), double(lot.below(3)), lot.below(8) ? 0.9 : 2.0, 0.1, lot.bits()};
    uint32_t filled[4], held[4], waiting[4], ran[3], made = 0;
    int64_t rows[4 * 16], waits[4 * 3], tokens[3];
    for (uint32_t depth = 0; depth < 4; depth++)
      filled[depth] = lot.below(8), held[depth] = lot.below(2) * filled[depth], waiting[depth] = depth ? lot.below(4) : 0;
    for (int64_t& row : rows) row = &row - rows + lot.below(8) % 2;
    for (int64_t& each : waits) each = (&each - waits) % 3 + lot.below(16) / 15;
    el_sequence sequence = {sizeof sequence, depths, lot.below(9), width, filled, held, waiting, rows, waits, states.data()};
    switch (lot.below(10)) {
      case 8: {
        const uint8_t wrong[3] = {0, 1, 0};
        el_drafting drafting = {sizeof drafting, lot.below(4), lot.below(4), lot.below(2), lot.below(4), lot.below(4) / 3 * 3,
            waits, wrong};
        el_decoder_draft(decoder, &drafting, error);
        break;
      }
      case 9: {
        double acceptance[3 * (EL_MARGINS + 1)], costs[3 * EL_COST_ROWS];
        uint32_t threads[EL_COST_ROWS];
        el_draft_report report = {};
        report.struct_bytes = sizeof report, report.depths = depths, report.acceptance = acceptance, report.least = costs, report.costs = lot.below(2) ? costs : nullptr;
        report.threads = lot.below(2) ? threads : nullptr;
        el_decoder_text(decoder, waits, lot.below(6), error);
        el_decoder_drafts(decoder, &report, error);
        break;
      }
      case 0: el_decoder_sample(decoder, &sampling, error); break;
      case 1: el_decoder_write(decoder, &sequence, error); break;
      case 2: el_decoder_truncate(decoder, lot.below(12), error); break;
      case 3: {
        sequence.held = sequence.waiting_positions = nullptr;
        sequence.waiting = nullptr;
        el_decoder_read(decoder, &sequence, error);
        break;
      }
      case 4: {
        uint64_t nanoseconds[4], calls[4];
        el_counts counts = {sizeof counts, depths, 0, 0, 0, 0, 0, 0, lot.below(2) ? nanoseconds : nullptr, calls};
        el_decoder_counts(decoder, &counts, error);
        std::vector<float> logits(model.head.program.output_width());
        el_decoder_logits(decoder, logits.data(), error);
        el_choose(&sampling, logits.data(), uint32_t(logits.size()), lot.bits(), tokens, error);
        break;
      }
      default: {
        const int64_t ends[] = {0, 1}, token = lot.below(model.model->header().vocab_size + (lot.below(32) == 0));
        el_decoder_next(decoder, token, ends, lot.below(3), 1 + lot.below(3), lot.below(4) ? tokens : nullptr,
            lot.below(2) ? ran : nullptr, &made, error);
      }
    }
  }
  el_decoder_free(decoder);
}

// A batch by lot: decoders of the session's sequences, and turns of which some cannot be.
void decode_many(el_session* session, const el_model& model, Lot& lot) {
  char error[EL_ERROR_SIZE];
  const uint32_t depths = 1 + lot.below(4);
  const float thresholds[3] = {0.5f, 0.5f, 0.5f};
  el_policy policy = {};
  policy.struct_bytes = sizeof policy;
  policy.rule = lot.below(3);
  policy.depths = depths;
  policy.stop = 1 + lot.below(depths);
  policy.skipped = policy.rule ? 1 + lot.below(4) : 0;
  policy.thresholds = thresholds;
  el_decoder* decoders[3] = {};
  el_batch* batch = nullptr;
  const int64_t ids[3] = {0, 1, lot.below(8) ? 0 : -1};
  for (uint32_t i = 0; i < 3; i++) el_decoder_new(session, lot.below(16) ? i % 2 : 0, &policy, &decoders[i], error);
  if (el_batch_new(session, &batch, error) == EL_OK) {
    for (int round = 0; round < 4; round++) {
      el_turn turns[3] = {};
      int64_t tokens[3][3];
      uint32_t ran[3][3];
      const bool several = lot.below(2);
      for (uint32_t i = 0; i < 3; i++) {
        turns[i].struct_bytes = sizeof turns[i];
        turns[i].chooses = lot.below(4);
        if (lot.below(3) == 0) turns[i].text = ids, turns[i].text_count = lot.below(4);
        turns[i].decoder = decoders[lot.below(16) ? i : 0];
        if (several) {
          turns[i].chooses = lot.below(8) ? uint32_t(EL_CHOOSES_DECODER) : lot.below(4);
          turns[i].most = lot.below(4), turns[i].ran = ran[i], turns[i].tokens = lot.below(8) ? tokens[i] : nullptr;
          turns[i].ends = lot.below(8) ? ids : nullptr, turns[i].ends_count = lot.below(4);
        }
        turns[i].token = lot.below(model.model->header().vocab_size + (lot.below(8) == 0));
      }
      uint64_t calls = 0, rows = 0;
      el_batch_next(batch, turns, lot.below(4), lot.below(2) ? &calls : nullptr, &rows, error);
      if (lot.below(4) == 0 && decoders[0]) el_decoder_truncate(decoders[0], lot.below(4), error);
    }
  }
  el_batch_free(batch);
  for (el_decoder* decoder : decoders) el_decoder_free(decoder);
}

// What changes no K and V, the rows that are kept, and a stop of the call to come.
void look(el_session* session, const el_model& model, Lot& lot) {
  char error[EL_ERROR_SIZE];
  const uint32_t stage = lot.below(4), slot = lot.below(3);
  std::vector<float> rows(el_kept_floats(session, stage) + 1);
  uint32_t tokens = 0;
  el_read_kept(session, stage, slot, &tokens, rows.data(), error);
  el_write_kept(session, stage, slot, lot.below(2) ? tokens : lot.below(12), rows.data(), error);
  el_stats stats = {};
  stats.struct_bytes = sizeof stats;
  el_session_stats(session, &stats, error);
  el_info info = {};
  info.struct_bytes = sizeof info;
  el_model_info(&model, &info, error);
  el_can_truncate(session, lot.below(40), lot.below(40));
  if (lot.below(2)) el_stop(session);
}

}  // namespace

void call(el_model& model, Lot& lot) {
  el_session_options options = {};
  options.struct_bytes = sizeof options;
  options.sequences = 2;
  options.capacity = std::min(model.model->header().context_length, 12 + lot.below(30));
  options.slots = lot.below(3);
  options.kv = lot.below(4);
  el_session* session = nullptr;
  char error[EL_ERROR_SIZE];
  if (el_session_new(&model, &options, &session, error) != EL_OK) return;
  el_profile(&model, 1, error);
  std::vector<float> state(2 * TOKENS * size_t(model.model->width())),
      logits(3 * size_t(model.head.program.output_width()));
  for (int round = 0; round < 12; round++) {
    Arrays a(lot, model, lot.below(2 * session->caches.slots_per_sequence()));
    const uint32_t stage = lot.below(4), slot = lot.below(3), first = lot.below(10), count = lot.below(6);
    switch (lot.below(13)) {
      case 0:
      case 1: el_prologue(session, &a.lanes, a.ids, lot.below(2) ? a.ids : nullptr, state.data(), error); break;
      case 2:
      case 3: el_block(session, &a.lanes, state.data(), state.data(), error); break;
      case 4: el_fill(session, &a.lanes, state.data(), error); break;
      case 5: el_epilogue(session, &a.lanes, state.data(), a.rows, lot.below(4), logits.data(), error); break;
      case 6: {
        float* wanted = lot.below(2) ? logits.data() : nullptr;
        a.lanes.count = 1;
        el_prompt(session, &a.lanes, a.ids, lot.below(4), wanted, error);
        break;
      }
      case 7: el_copy(session, stage, slot, first, session, lot.below(3), lot.below(10), count, error); break;
      case 8: {
        std::vector<uint8_t> rows(el_row_bytes(session, stage) * count + 1);
        el_read_rows(session, stage, slot, first, count, rows.data(), error);
        el_write_rows(session, stage, slot, lot.below(10), count, rows.data(), error);
        break;
      }
      case 9: el_trim(session, stage, slot, first, error); break;
      case 10: decode_many(session, model, lot); break;
      case 11: look(session, model, lot); break;
      default: decode_one(session, model, lot);
    }
  }
  std::vector<el_node_time> nodes(3);
  uint64_t count = 0;
  el_profile_read(&model, nodes.data(), nodes.size(), &count, error);
  el_profile(&model, 0, error);
  el_session_free(session);
}

}  // namespace edgeloop
