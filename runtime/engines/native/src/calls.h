// Calls over lanes: what a caller's arrays say, checked, and run in passes of a limited number of rows.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.h"

namespace edgeloop {

// Passes that cost about as much, for the team to learn how many threads they are worth (pace.h): of one role, and rows that
// differ by a few percent, or by half of them at most.
int kind_of(Role role, uint32_t rows);

// A lane that is not idle, and where its rows are among the caller's.
struct Asked {
  uint32_t depth, cached, tokens, slot, first_slot;
  const int64_t* positions;
  size_t row;  // the caller's, of its first token
};

// The lanes of a call.
struct Lanes {
  std::vector<Asked> lanes;
  size_t rows = 0;              // of the caller's arrays, padding included
  std::vector<size_t> padding;  // rows that count for nothing
};

// Throws an Error with EL_USAGE for lanes that cannot be. `stage`: file::StageWithCaches.
Lanes check_lanes(const el_session& session, const el_lanes* lanes, uint32_t stage);

// What a stage reads and gives: rows of the caller's.
struct Io {
  const float* in = nullptr;
  size_t in_width = 0;
  const int64_t* ids = nullptr;    // prologue
  const int64_t* types = nullptr;  // null: all 0
  float* out = nullptr;            // null: of fills
  size_t out_width = 0;
};

// `what` on the lanes, which are all of one program. Rows that go out may be those that come in.
void run_lanes(el_session& session, const Compiled& what, std::vector<Asked> lanes, const Io& io);
// The block, or what fills it, on lanes at any depths: those of one program go together, and where depths share K and V
// the first goes first.
void run_blocks(el_session& session, std::vector<Asked> lanes, const Io& io, bool fill);
// The head on `count` rows of `in`, which are what the epilogue gives → logits [count][output].
void run_head(el_session& session, const float* in, const std::vector<size_t>& rows, float* logits);

void call_prologue(el_session& session, const el_lanes* lanes, const int64_t* ids, const int64_t* types,
    float* state);
void call_block(el_session& session, const el_lanes* lanes, const float* state, float* out, bool fill);
void call_epilogue(el_session& session, const el_lanes* lanes, const float* state, const int64_t* rows,
    uint32_t wanted, float* logits);
void call_prompt(el_session& session, const el_lanes* lanes, const int64_t* ids, uint32_t depths, float* logits);

}  // namespace edgeloop
