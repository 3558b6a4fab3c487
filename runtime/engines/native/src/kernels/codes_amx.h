// Products of many rows by the tiles of AMX: 16 rows of codes times 16 rows of a matrix at once. A group's sums are whole
// numbers, exact in the tiles, and are then scaled and added as everywhere. The file has weights as AMX wants them, but for
// their offset: [4 columns][16 rows] of words.
//
// `Unit` is what has eight tiles: the processor (tiles_amx.h), or a model of it in plain C++ (test_amx.cpp).
#pragma once

#include "codes.h"

namespace {

// From so many rows on. Not measured: where 12 rows in registers begin to repeat what they do to the weights.
constexpr int32_t TILED_ROWS = 16;
constexpr int32_t HEIGHT = 16;          // rows of a tile
constexpr int32_t STEP = 64;            // bytes of a row of a tile: columns that are multiplied at once
constexpr int32_t KEPT_COLUMNS = 4096;  // of a matrix that has no more, a tile is unpacked once for all rows

// What the instruction that configures tiles reads.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};
};

// Tiles by number: sums of two blocks of rows with two tiles of the matrix each, codes of the blocks, weights of the tiles.
enum : int { SUMS = 0, CODES = 4, WEIGHTS = 6 };

inline TileShapes shapes(int32_t height, int32_t step) {
  TileShapes s;
  for (int t = 0; t < 8; t++) {
    s.bytes[t] = uint16_t(t < CODES || t >= WEIGHTS ? 64 : step);
    s.rows[t] = uint8_t(t < WEIGHTS ? height : step / 4);
  }
  return s;
}

// Weights of `columns` columns of a tile as signed bytes.
template <Kind kind>
inline void unpack_tile(const uint8_t* __restrict w, int32_t columns, int8_t* __restrict to) {
  if constexpr (kind == Kind::int4) {
    for (int32_t k = 0; k < columns; k += 8, w += 64, to += 128) {
      prefetch(w + AHEAD);
      for (int i = 0; i < 64; i++) to[i] = int8_t((w[i] & 15) - 8), to[64 + i] = int8_t((w[i] >> 4) - 8);
    }
  } else {
    for (int32_t k = 0; k < columns; k += 4, w += 64, to += 64) {
      prefetch(w + AHEAD);
      for (int i = 0; i < 64; i++) to[i] = int8_t(w[i] - 128);
    }
  }
}

// Per thread: it is too large for the stack of a thread of somebody else's.
alignas(64) thread_local int8_t unpacked[2][KEPT_COLUMNS * LANES];

// The rows and tiles of a matrix that are multiplied.
struct Panel {
  Factors f[2];     // of the matrix's tiles; x, x_scales and x_sums are those of row 0
  int32_t rows, height, step;
  bool kept;        // `unpacked` has both tiles whole
};

// B blocks of rows, the first one from row `row` on, times T tiles → y [B][HEIGHT][T]. Behind the last row blocks are moved up,
// so that their rows are all there: some are then computed again.
template <class Unit, Kind kind, int B, int T>
void tile_block(const Panel& p, const int32_t (&row)[2], F* y) {
  constexpr int bytes = kind == Kind::int4 ? 8 : 16;  // of a column of a tile
  alignas(64) int32_t sums[B][T][HEIGHT][LANES];
  const Factors& f = p.f[0];
  for (int i = 0; i < B * HEIGHT * T; i++) y[i] = set1(0.f);
  for (int32_t g = 0, from = 0; g < f.groups; g++, from += f.group) {
    const int32_t to = from + f.group < f.stride ? from + f.group : f.stride;
    Unit::template zero<SUMS>();
    if constexpr (T == 2) Unit::template zero<SUMS + 1>();
    if constexpr (B == 2) Unit::template zero<SUMS + 2>();
    if constexpr (B == 2 && T == 2) Unit::template zero<SUMS + 3>();
    for (int32_t k = from; k < to; k += p.step) {
      const size_t at = p.kept ? size_t(k) * LANES : 0;
      if (!p.kept)
        for (int t = 0; t < T; t++) unpack_tile<kind>(p.f[t].weights + size_t(k) * bytes, p.step, unpacked[t]);
      Unit::template load<WEIGHTS>(unpacked[0] + at, 64);
      Unit::template load<CODES>(f.x + int64_t(row[0]) * f.stride + k, f.stride);
      Unit::template add_products<SUMS, CODES, WEIGHTS>();
      if constexpr (T == 2) {
        Unit::template load<WEIGHTS + 1>(unpacked[1] + at, 64);
        Unit::template add_products<SUMS + 1, CODES, WEIGHTS + 1>();
      }
      if constexpr (B == 2) {
        Unit::template load<CODES + 1>(f.x + int64_t(row[1]) * f.stride + k, f.stride);
        Unit::template add_products<SUMS + 2, CODES + 1, WEIGHTS>();
        if constexpr (T == 2) Unit::template add_products<SUMS + 3, CODES + 1, WEIGHTS + 1>();
      }
    }
    Unit::template store<SUMS>(sums[0][0], 64);
    if constexpr (T == 2) Unit::template store<SUMS + 1>(sums[0][1], 64);
    if constexpr (B == 2) Unit::template store<SUMS + 2>(sums[1][0], 64);
    if constexpr (B == 2 && T == 2) Unit::template store<SUMS + 3>(sums[1][1], 64);
    for (int t = 0; t < T; t++) {
      const F scale = load_half(p.f[t].scales + g * LANES);
      for (int b = 0; b < B; b++)
        for (int32_t i = 0; i < p.height; i++) {
          F& to_y = y[(b * HEIGHT + i) * T + t];
          to_y = to_y + to_floats(load_words(sums[b][t][i])) * (scale * set1(f.x_scales[int64_t(row[b] + i) * f.groups + g]));
        }
    }
  }
}

// All rows times T tiles from `tile` on.
template <class Unit, Kind kind, int T>
void tile_rows(const Matrix& w, const Panel& p, int32_t tile, const Output& out) {
  if (p.kept)
    for (int t = 0; t < T; t++) unpack_tile<kind>(p.f[t].weights, p.f[t].stride, unpacked[t]);
  for (int32_t m = 0; m < p.rows; m += 2 * HEIGHT) {
    const int32_t last = p.rows - p.height, next = m + HEIGHT;
    const int32_t row[2] = {m < last ? m : last, next < last ? next : last};
    const bool two = next < p.rows;
    F y[2 * HEIGHT * T];
    if (two) tile_block<Unit, kind, 2, T>(p, row, y);
    else tile_block<Unit, kind, 1, T>(p, row, y);
    for (int b = 0; b < 1 + two; b++)
      for (int32_t i = m + b * HEIGHT - row[b]; i < p.height; i++)
        for (int t = 0; t < T; t++) put(w, tile + t, row[b] + i, y[(b * HEIGHT + i) * T + t], out);
  }
}

template <class Unit, Kind kind>
void tile_product(const Matrix& w, const Codes& x, int32_t rows, int32_t first, int32_t last, const Output& out) {
  const int32_t groups = groups_of(w), stride = padded(w.columns), group = w.group < w.columns ? w.group : stride;
  const int32_t sizes = group | (stride - (groups - 1) * group) | STEP;
  Panel p{};
  p.rows = rows, p.height = rows < HEIGHT ? rows : HEIGHT, p.step = sizes & -sizes;  // divides every group
  p.kept = stride <= KEPT_COLUMNS;
  Unit::configure(shapes(p.height, p.step));
  for (int32_t tile = first; tile < last; tile += 2) {
    for (int t = 0; t < 2 && tile + t < last; t++) {
      const size_t number = size_t(tile + t);
      p.f[t] = {static_cast<const uint8_t*>(w.data) + number * tile_bytes(w), w.scales + number * size_t(groups) * LANES,
                x.codes, x.scales, x.sums, stride, group, groups};
    }
    if (tile + 1 < last) tile_rows<Unit, kind, 2>(w, p, tile, out);
    else tile_rows<Unit, kind, 1>(w, p, tile, out);
  }
  Unit::release();
}

template <class Unit>
void product_tiles(const Matrix& w, const Codes& x, int32_t rows, int32_t first, int32_t last, const Output& out) {
  if (w.kind == Kind::int4) tile_product<Unit, Kind::int4>(w, x, rows, first, last, out);
  else tile_product<Unit, Kind::int8>(w, x, rows, first, last, out);
}

}  // namespace
