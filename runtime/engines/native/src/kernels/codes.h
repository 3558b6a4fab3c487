// Products of int8 activations: quantization, and the walk over tiles and rows. How a tile multiplies is each
// instruction set's own: codes_tile<kind, M> for M rows from 1 to CODE_ROWS.
#pragma once

#include <cmath>

#include "floats.h"
#include "functions.h"

namespace {

// How a group is cut into steps: what a step is worth, and how many there are to 1; 0 of both where all is 0 or as good
// as that. NaN, and 0, where a number is not finite.
struct Steps {
  float scale, per_one;
};
inline Steps steps_of(const float* x, int32_t n) {
  I top = set1(int32_t{0});  // floats without their sign are in the order of their bits, infinity and NaN last
  int32_t i = 0;
  for (; i + LANES <= n; i += LANES) top = larger(top, as_words(absolute(load(x + i))));
  if (i < n) top = larger(top, as_words(absolute(load_n(x + i, n - i))));
  const int32_t bits = largest(top);
  float peak;
  memcpy(&peak, &bits, 4);
  if (bits >= 0x7f800000) return {NAN, 0.f};
  const float per_one = bits > 0 ? 127.f / peak : INFINITY;
  if (per_one == INFINITY) return {0.f, 0.f};
  return {peak / 127.f, per_one};
}

// The codes of numbers i to i + 15 of n; zeros behind the last one.
inline I codes_at(const float* x, int32_t n, int32_t i, float per_one) {
  const F v = n - i >= LANES ? load(x + i) : load_n(x + i, n - i);
  return rounded_words(v * set1(per_one));
}

// One group. Zeros behind the last number give codes of zero, up to a multiple of 16.
inline void quantize_group(const float* x, int32_t n, int32_t zero, int8_t* codes, float* scale, int32_t* sum_of_codes) {
  const Steps steps = steps_of(x, n);
  *scale = steps.scale;
  if (steps.per_one == 0.f) {
    *sum_of_codes = 0;
    memset(codes, 0, size_t(padded(n)));
    return;
  }
  I total = set1(int32_t{0});
  for (int32_t i = 0; i < n; i += LANES) {
    const I whole = codes_at(x, n, i, steps.per_one);
    store_bytes(codes + i, whole);
    total = total + whole;
  }
  *sum_of_codes = -zero * sum(total);
}

void quantize(const float* x, int32_t n, int32_t group, int32_t zero, int8_t* codes, float* scales, int32_t* sums) {
  for (int32_t k = 0; k < n; k += group) {
    quantize_group(x + k, n - k < group ? n - k : group, zero, codes + k, scales++, sums++);
  }
}

// What a tile of 16 rows of a matrix and rows of codes are, for codes_tile.
struct Factors {
  const uint8_t* weights;
  const uint16_t* scales;     // [groups][16]
  const int8_t* x;            // rows of `stride` codes
  const float* x_scales;      // rows of `groups`
  const int32_t* x_sums;
  int32_t stride, group, groups;
};

template <Kind kind, int M> void codes_tile(const Factors& f, F* y);  // y [M]
// The tile and the one behind it, `next` bytes further: for M rows at most PAIR_ROWS, which is 0 where there is none. y [2][M].
template <Kind kind, int M> void codes_pair(const Factors& f, size_t next, F* y);

template <Kind kind, int M = CODE_ROWS>
inline void codes_rows(const Factors& f, int32_t rows, F* y) {
  if constexpr (M > 0) {
    if (rows == M) codes_tile<kind, M>(f, y);
    else codes_rows<kind, M - 1>(f, rows, y);
  }
}

constexpr int32_t PAIRS_FROM = CODE_ROWS + 1;  // rows: fewer are quicker with one tile

template <Kind kind, int M = PAIR_ROWS>
inline void pair_rows(const Factors& f, size_t next, int32_t rows, F* y) {
  if constexpr (M > 0) {
    if (rows == M) codes_pair<kind, M>(f, next, y);
    else pair_rows<kind, M - 1>(f, next, rows, y);
  }
}

template <Kind kind>
void codes_product(const Matrix& w, const Codes& x, int32_t rows, int32_t first, int32_t last, const Output& out) {
  const int32_t groups = groups_of(w), stride = padded(w.columns);
  Factors f{};
  f.stride = stride, f.group = w.group < w.columns ? w.group : stride, f.groups = groups;
  for (int32_t tile = first, tiles; tile < last; tile += tiles) {
    const bool pair = PAIR_ROWS && rows >= PAIRS_FROM && tile + 1 < last;
    tiles = pair ? 2 : 1;
    f.weights = static_cast<const uint8_t*>(w.data) + size_t(tile) * tile_bytes(w);
    f.scales = w.scales + size_t(tile) * size_t(groups) * LANES;
    for (int32_t m = 0, height; m < rows; m += height) {
      const int32_t left = rows - m, most = pair ? PAIR_ROWS : CODE_ROWS;
      height = left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
      f.x = x.codes + int64_t(m) * stride;
      f.x_scales = x.scales + int64_t(m) * groups;
      f.x_sums = x.sums + int64_t(m) * groups;
      F y[CODE_ROWS];
      if (pair) pair_rows<kind>(f, tile_bytes(w), height, y);
      else codes_rows<kind>(f, height, y);
      for (int32_t t = 0; t < tiles; t++)
        for (int32_t i = 0; i < height; i++) put(w, tile + t, m + i, y[t * height + i], out);
    }
  }
}

void product_codes(const Matrix& w, const Codes& x, int32_t rows, int32_t first, int32_t last, const Output& out) {
  if (w.kind == Kind::int4) codes_product<Kind::int4>(w, x, rows, first, last, out);
  else codes_product<Kind::int8>(w, x, rows, first, last, out);
}

// Four codes of a row, as one word.
inline int32_t four(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return word;
}

}  // namespace
