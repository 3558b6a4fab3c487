// The C interface of batches (edgeloop.h).
#include <algorithm>
#include <vector>

#include "../guarded.h"
#include "batch.h"

using namespace edgeloop;
using namespace edgeloop::decode;

namespace {

constexpr uint32_t MOST_TURNS = 1u << 16;

// Turns of decoders of the session, each of another sequence.
void check_turns(const el_session& session, const el_turn* turns, uint32_t count) {
  if (!turns) fail(EL_USAGE, "turns is NULL");
  if (count < 1 || count > MOST_TURNS) fail(EL_USAGE, "%u turns, wanted 1 to %u", count, MOST_TURNS);
  std::vector<uint32_t> numbers;
  for (uint32_t i = 0; i < count; i++) {
    check_struct(turns[i].struct_bytes, sizeof turns[i], "el_turn");
    if (!turns[i].decoder) fail(EL_USAGE, "the decoder of turn %u is NULL", i);
    const el_turn& turn = turns[i];
    if ((turn.ends_count && !turn.ends) || (turn.most > 1 && !(turn.tokens && turn.ran)))
      fail(EL_USAGE, "ends, tokens or ran of turn %u is NULL", i);
    const Decoder& decoder = turns[i].decoder->decoder;
    if (&decoder.passes.session != &session) fail(EL_USAGE, "the decoder of turn %u is of another session", i);
    numbers.push_back(decoder.sequence.number);
  }
  std::sort(numbers.begin(), numbers.end());
  const auto twice = std::adjacent_find(numbers.begin(), numbers.end());
  if (twice != numbers.end()) fail(EL_USAGE, "two turns have sequence %u, wanted one for each", *twice);
}

}  // namespace

int el_batch_new(el_session* session, el_batch** batch, char* error) {
  return guarded(error, [&] {
    if (!session || !batch) fail(EL_USAGE, "session or batch is NULL");
    *batch = new el_batch(*session);
  });
}

void el_batch_free(el_batch* batch) { delete batch; }

int el_batch_next(el_batch* batch, el_turn* turns, uint32_t count, uint64_t* calls, uint64_t* rows, char* error) {
  return computing(batch ? &batch->session : nullptr, error, [&](el_session& session) {
    check_turns(session, turns, count);
    Batch& own = batch->batch;
    const uint64_t calls_before = own.calls(), rows_before = own.rows();
    own.run(turns, count);
    if (calls) *calls = own.calls() - calls_before;
    if (rows) *rows = own.rows() - rows_before;
  });
}
