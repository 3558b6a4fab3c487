// Products of float activations, and rows of a matrix: any kind of weight becomes columns of 16 floats.
#pragma once

#include "kernels.h"

namespace {

using namespace edgeloop;

// How far ahead weights are fetched, in bytes: they are read once, from memory. A core that has so many lines on their way
// reads as fast as it can (a fifth faster than with 4096 bytes); twice as many push others out of a first-level cache.
constexpr int AHEAD = 12288;

// Column J of the 8 that begin at p. A code times a scale is exact: 8 bits times 11.
template <Kind kind> struct Columns;

template <> struct Columns<Kind::float32> {
  static constexpr int BYTES = 512;  // of 8 columns
  template <int J> static F at(const char* p, F) { return load(reinterpret_cast<const float*>(p) + J * LANES); }
};

template <> struct Columns<Kind::float16> {
  static constexpr int BYTES = 256;
  template <int J> static F at(const char* p, F) { return load_half(reinterpret_cast<const uint16_t*>(p) + J * LANES); }
};

template <> struct Columns<Kind::int8> {
  static constexpr int BYTES = 128;
  template <int J> static F at(const char* p, F scale) {
    const I codes = shift_right<J % 4 * 8>(load_words(p + J / 4 * 64)) & set1(255);
    return to_floats(codes + set1(-128)) * scale;
  }
};

template <> struct Columns<Kind::int4> {
  static constexpr int BYTES = 64;
  template <int J> static F at(const char* p, F scale) {
    const I codes = shift_right<J % 4 * 8 + J / 4 * 4>(load_words(p)) & set1(15);
    return to_floats(codes + set1(-8)) * scale;
  }
};

template <Kind kind, int J, int M>
inline void add_column(const char* p, F scale, const float* x, int64_t stride, F (&s)[M][4]) {
  const F column = Columns<kind>::template at<J>(p, scale);
  for (int m = 0; m < M; m++) s[m][J % 4] = s[m][J % 4] + set1(x[m * stride + J]) * column;
}

// n of the columns at p times as many numbers of M rows.
template <Kind kind, int M>
inline void add_columns(const char* p, F scale, const float* x, int64_t stride, int32_t n, F (&s)[M][4]) {
  add_column<kind, 0>(p, scale, x, stride, s);
  if (n > 1) add_column<kind, 1>(p, scale, x, stride, s);
  if (n > 2) add_column<kind, 2>(p, scale, x, stride, s);
  if (n > 3) add_column<kind, 3>(p, scale, x, stride, s);
  if (n > 4) add_column<kind, 4>(p, scale, x, stride, s);
  if (n > 5) add_column<kind, 5>(p, scale, x, stride, s);
  if (n > 6) add_column<kind, 6>(p, scale, x, stride, s);
  if (n > 7) add_column<kind, 7>(p, scale, x, stride, s);
}

// Row m of a product with a tile to where `out` says.
inline void put(const Matrix& w, int32_t tile, int64_t m, F v, const Output& out) {
  const int32_t first = tile * LANES, n = w.rows - first;
  float* y = out.y + m * out.stride + first;
  if (n >= LANES) {
    if (out.bias) v = v + load(out.bias + first);
    store(y, out.add ? load(y) + v : v);
  } else {
    if (out.bias) v = v + load_n(out.bias + first, n);
    store_n(y, out.add ? load_n(y, n) + v : v, n);
  }
}

template <Kind kind, int M>
void floats_tile(const Matrix& w, int32_t tile, const float* x, int64_t stride, int64_t row, const Output& out) {
  constexpr bool coded = kind == Kind::int8 || kind == Kind::int4;
  const char* p = static_cast<const char*>(w.data) + size_t(tile) * tile_bytes(w);
  const uint16_t* scales = coded ? w.scales + size_t(tile) * size_t(groups_of(w)) * LANES : nullptr;
  const int32_t group = coded && w.group < w.columns ? w.group : w.columns;
  F s[M][4], scale = set1(1.f);
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) s[m][j] = set1(0.f);
  x += row * stride;
  for (int32_t k = 0; k < w.columns;) {
    if (coded) scale = load_half(scales), scales += LANES;
    const int32_t end = w.columns - k < group ? w.columns : k + group;
    for (; k + 8 <= end; k += 8, p += Columns<kind>::BYTES) {
      for (int i = 0; i < Columns<kind>::BYTES; i += 64) prefetch(p + AHEAD + i);
      add_columns<kind>(p, scale, x + k, stride, 8, s);
    }
    if (k < end) add_columns<kind>(p, scale, x + k, stride, end - k, s), k = end;
  }
  for (int m = 0; m < M; m++) put(w, tile, row + m, (s[m][0] + s[m][1]) + (s[m][2] + s[m][3]), out);
}

// A tile times `rows` rows, at most M.
template <Kind kind, int M = FLOAT_ROWS>
inline void floats_rows(const Matrix& w, int32_t tile, const float* x, int64_t stride, int32_t row, int32_t rows, const Output& out) {
  if constexpr (M > 0) {
    if (rows == M) floats_tile<kind, M>(w, tile, x, stride, row, out);
    else floats_rows<kind, M - 1>(w, tile, x, stride, row, rows, out);
  }
}

template <Kind kind>
void floats_product(const Matrix& w, const float* x, int64_t stride, int32_t rows, int32_t first, int32_t last, const Output& out) {
  for (int32_t tile = first; tile < last; tile++)
    for (int32_t m = 0; m < rows; m += FLOAT_ROWS) {
      floats_rows<kind>(w, tile, x, stride, m, rows - m < FLOAT_ROWS ? rows - m : FLOAT_ROWS, out);
    }
}

void product_floats(const Matrix& w, const float* x, int64_t stride, int32_t rows, int32_t first, int32_t last, const Output& out) {
  switch (w.kind) {
    case Kind::float32: return floats_product<Kind::float32>(w, x, stride, rows, first, last, out);
    case Kind::float16: return floats_product<Kind::float16>(w, x, stride, rows, first, last, out);
    case Kind::int8: return floats_product<Kind::int8>(w, x, stride, rows, first, last, out);
    case Kind::int4: return floats_product<Kind::int4>(w, x, stride, rows, first, last, out);
  }
}

// Row n of a tile of codes; `scales` are its own, 16 apart.
inline void row_of_codes(const Matrix& w, const uint8_t* codes, const uint16_t* scales, float factor, float* y) {
  uint16_t halves[LANES] = {};
  float floats[LANES], scale = 0;
  const int32_t run = w.kind == Kind::int4 ? 8 : 4;
  for (int32_t k = 0, next = 0; k < w.columns; k += run, codes += 64) {
    if (k == next) {
      halves[0] = *scales;
      store(floats, load_half(halves));
      scale = floats[0], scales += LANES, next += w.group;
    }
    const int32_t n = w.columns - k < run ? w.columns - k : run;
    for (int32_t j = 0; j < n; j++) {
      const int32_t byte = codes[j % 4];
      const int32_t code = run == 4 ? byte - 128 : (j < 4 ? byte & 15 : byte >> 4) - 8;
      y[k + j] = (float(code) * scale) * factor;
    }
  }
}

void matrix_row(const Matrix& w, int32_t n, float factor, float* y) {
  const size_t tile = size_t(n / LANES), lane = size_t(n % LANES);
  const uint8_t* p = static_cast<const uint8_t*>(w.data) + tile * tile_bytes(w);
  if (w.kind == Kind::float32) {
    const float* numbers = reinterpret_cast<const float*>(p) + lane;
    for (int32_t k = 0; k < w.columns; k++) y[k] = numbers[k * LANES] * factor;
  } else if (w.kind == Kind::float16) {
    const uint16_t* numbers = reinterpret_cast<const uint16_t*>(p) + lane;
    for (int32_t k = 0; k < w.columns; k += LANES) {
      const int32_t n_here = w.columns - k < LANES ? w.columns - k : LANES;
      uint16_t halves[LANES] = {};
      for (int32_t j = 0; j < n_here; j++) halves[j] = numbers[(k + j) * LANES];
      store_n(y + k, load_half(halves) * set1(factor), n_here);
    }
  } else {
    row_of_codes(w, p + lane * 4, w.scales + tile * size_t(groups_of(w)) * LANES + lane, factor, y);
  }
}

}  // namespace
