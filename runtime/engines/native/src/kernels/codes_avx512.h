// A tile of int8 products with AVX-512 VNNI: dpbusd multiplies 4 unsigned bytes of each lane with 4 signed ones and adds.
#pragma once

#include "codes.h"

namespace {

// The codes of 16 columns: lane n of v[j] holds columns 4j to 4j + 3 of row n.
template <Kind kind>
inline const uint8_t* unpack(const uint8_t* p, __m512i (&v)[4]) {
  if constexpr (kind == Kind::int4) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; j += 2, p += 64) {
      const __m512i bytes = _mm512_load_si512(p);
      v[j] = _mm512_and_si512(bytes, low);
      v[j + 1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
      prefetch(p + AHEAD);
    }
  } else {
    for (int j = 0; j < 4; j++, p += 64) {
      v[j] = _mm512_load_si512(p);
      prefetch(p + AHEAD);
    }
  }
  return p;
}

template <Kind kind, int M>
void codes_tile(const Factors& f, F* y) {
  // A sum waits 4 or 5 cycles for the one before it, so few rows have two sums each, which are then added (4 rows: 1.7 → 1.2
  // times the time of one; more sums are slower again in groups of 32).
  constexpr int chains = M <= 4 ? 2 : 1;
  const uint8_t* w = f.weights;
  __m512 acc[M];
  for (int m = 0; m < M; m++) acc[m] = _mm512_setzero_ps();
  for (int32_t g = 0, from = 0; g < f.groups; g++, from += f.group) {
    const int32_t to = from + f.group < f.stride ? from + f.group : f.stride;
    __m512i sums[M][chains];
    for (int m = 0; m < M; m++) {
      sums[m][0] = _mm512_set1_epi32(f.x_sums[m * f.groups + g]);
      for (int c = 1; c < chains; c++) sums[m][c] = _mm512_setzero_si512();
    }
    for (int32_t k = from; k < to; k += 16) {
      __m512i v[4];
      w = unpack<kind>(w, v);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
          const __m512i x = _mm512_set1_epi32(four(f.x + int64_t(m) * f.stride + k + 4 * j));
          sums[m][j % chains] = _mm512_dpbusd_epi32(sums[m][j % chains], v[j], x);
        }
      }
    }
    const __m512 scale = load_half(f.scales + g * LANES).v;
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
      for (int n = chains / 2; n > 0; n /= 2)
        for (int c = 0; c < n; c++) sums[m][c] = _mm512_add_epi32(sums[m][c], sums[m][c + n]);
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(f.x_scales[m * f.groups + g]));
      acc[m] = _mm512_add_ps(acc[m], _mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][0]), both));
    }
  }
  for (int m = 0; m < M; m++) y[m].v = acc[m];
}

// A row's codes are loaded once for both tiles: with many rows loads are the limit (12 sums in registers: 0.9 times as long as
// one tile and 12 rows; with more registers are not enough).
template <Kind kind, int M>
void codes_pair(const Factors& f, size_t next, F* y) {
  constexpr int parts = kind == Kind::int4 ? 2 : 1;  // vectors of 4 columns in 64 bytes
  const __m512i low = _mm512_set1_epi8(15);
  const uint8_t* w = f.weights;
  __m512 acc[2][M];
  for (int t = 0; t < 2; t++)
    for (int m = 0; m < M; m++) acc[t][m] = _mm512_setzero_ps();
  for (int32_t g = 0, from = 0; g < f.groups; g++, from += f.group) {
    const int32_t to = from + f.group < f.stride ? from + f.group : f.stride;
    __m512i sums[2][M];
    for (int m = 0; m < M; m++) sums[0][m] = sums[1][m] = _mm512_set1_epi32(f.x_sums[m * f.groups + g]);
    for (int32_t k = from; k < to; k += 4 * parts, w += 64) {
      __m512i v[2][parts];
      for (int t = 0; t < 2; t++) {
        const __m512i bytes = _mm512_load_si512(w + t * next);
        prefetch(w + t * next + AHEAD);
        if constexpr (kind == Kind::int4) {
          v[t][0] = _mm512_and_si512(bytes, low);
          v[t][1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        } else {
          v[t][0] = bytes;
        }
      }
#pragma GCC unroll 2
      for (int j = 0; j < parts; j++) {
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
          const __m512i x = _mm512_set1_epi32(four(f.x + int64_t(m) * f.stride + k + 4 * j));
          for (int t = 0; t < 2; t++) sums[t][m] = _mm512_dpbusd_epi32(sums[t][m], v[t][j], x);
        }
      }
    }
    for (int t = 0; t < 2; t++) {
      const __m512 scale = load_half(f.scales + (t * f.groups + g) * LANES).v;
#pragma GCC unroll 6
      for (int m = 0; m < M; m++) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(f.x_scales[m * f.groups + g]));
        acc[t][m] = _mm512_add_ps(acc[t][m], _mm512_mul_ps(_mm512_cvtepi32_ps(sums[t][m]), both));
      }
    }
  }
  for (int t = 0; t < 2; t++)
    for (int m = 0; m < M; m++) y[t * M + m].v = acc[t][m];
}

}  // namespace
