// How a program is run by a team of threads: its nodes in steps, and where each value lies.
//
// Within a step, pieces of work do not wait for each other: all rows of some columns of the products of matrices, with
// all that can be done to those columns at once (COLUMNS), a row (ROWS), or some rows of the heads that share K and V
// (ATTEND). All threads wait for each other after a step, but for steps of rows when there are few: every thread then
// computes all of them for itself, which is quicker than to wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "program.h"

namespace edgeloop {

constexpr uint32_t NARROW = 4;      // so many rows are few
constexpr uint32_t BLOCK_ROWS = 48;  // of a thread at least, for rows rather than columns to be shared out among threads
constexpr uint32_t ROW_TILE = 24;   // rows of a piece of columns that are worked on together

// Where a value lies: `offset` floats of each row further than the beginning of its room.
enum class Place : uint8_t {
  ids,      // it is the caller's, whole numbers
  shared,   // one copy for all threads
  own,      // in narrow passes a copy for each thread, else as `shared`
  scratch,  // within a piece of a step only
  output,   // what a head gives: the caller's
};

struct Lies {
  Place place = Place::ids;
  size_t offset = 0;
};

// Columns of values that belong together, cut into pieces that are worked on by themselves.
struct Domain {
  uint32_t size = 0;
  uint32_t piece = 0;            // columns of a piece: whole tiles, heads and groups
  uint32_t first_unit = 0;
  std::vector<uint32_t> nodes;   // in order
  uint32_t units() const { return (size + piece - 1) / piece; }
};

struct Step {
  enum Kind : uint8_t { ROWS, COLUMNS, ATTEND, EXPERTS } kind = ROWS;
  bool waits = true;             // do threads wait for each other after it, also in a narrow pass?
  std::vector<uint32_t> nodes;   // but for COLUMNS
  std::vector<Domain> domains;   // COLUMNS
  uint32_t units = 0;            // COLUMNS: pieces of all domains
};

struct Plan {
  std::vector<Step> steps;
  std::vector<Lies> values;       // of each value
  std::vector<Lies> codes;        // of each of the program's codes: codes, scales and sums in turn
  std::vector<size_t> memories;   // of K and V of a call's own rows: where they begin, floats a token
  size_t floats = 0;              // a row, of shared and own values
  size_t memory = 0;              // a token, of K and V of a call's own rows
  size_t scratch = 0;             // a thread
};

// Floats that a row of codes takes, and where its scales and sums begin.
struct CodesRow {
  size_t scales, sums, floats;
};
CodesRow codes_row(const Program& program, const CodesOf& codes);

Plan make_plan(const Program& program);

}  // namespace edgeloop
