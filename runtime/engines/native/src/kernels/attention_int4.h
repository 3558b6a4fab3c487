// Attention over K and V in int4: codes from -7 to 7, 16 numbers of a token share a scale. Floats are made of the codes
// when they are read, and scales are taken into q · k and p for 16 numbers at a time.
#pragma once

#include "attention.h"

namespace {

constexpr float MOST_CODE = 7.f;
constexpr int32_t CODE_OFFSET = 8;  // nibbles are unsigned
constexpr uint16_t HALF_NAN = 0x7e00, HALF_INFINITY = 0x7c00;

inline int32_t int4_dims(int32_t head_dim) { return round_up(head_dim, 2 * LANES); }
// Where what a part (K, or V, of a head) has of each 16 numbers begins: scales [dims/16][16 tokens].
inline const uint16_t* int4_scales(const void* part, int32_t dims) {
  return reinterpret_cast<const uint16_t*>(static_cast<const char*>(part) + dims * LANES / 2);
}
inline F nibbles(I words) { return to_floats((words & set1(int32_t{15})) + set1(-CODE_OFFSET)); }

// Scores of the tokens of B blocks, N heads. The last block stands in for those behind it: its scores are written twice.
template <int N, int B>
inline void score_int4(const Queries& a, int32_t dims, int32_t block, int32_t blocks, bool fetch) {
  const char* keys[B];
  int32_t here[B];
  F s[B][N];
  for (int b = 0; b < B; b++) {
    here[b] = block + b < blocks ? block + b : blocks - 1;
    keys[b] = keys_of<char>(a.cached, here[b]);
    if (fetch) {
      const char *values = values_of<char>(a.cached, here[b]), *next = keys_of<char>(a.cached, here[b] + 1 < blocks ? here[b] + 1 : here[b]);
#pragma GCC unroll 1
      for (int32_t i = 0; i < dims * 10; i += 64) prefetch(values + i), prefetch(next + i);
    }
    for (int j = 0; j < N; j++) s[b][j] = set1(0.f);
  }
  for (int32_t d = 0; d < a.head_dim; d += LANES) {
    F part[B][N];
    for (int b = 0; b < B; b++)
      for (int j = 0; j < N; j++) part[b][j] = set1(0.f);
    for (int32_t i = d; i < d + LANES && i < a.head_dim; i += 8) {
      I words[B];
      for (int b = 0; b < B; b++) words[b] = load_words(keys[b] + i * LANES / 2);
      const int32_t end = a.head_dim - i < 8 ? a.head_dim - i : 8;
#pragma GCC unroll 1  // here and below: unrolled, all tables together are 50 KB more
      for (int32_t k = 0; k < end; k++)
        for (int b = 0; b < B; b++) {
          const F code = nibbles(words[b]);
          words[b] = shift_right<4>(words[b]);
          for (int j = 0; j < N; j++) part[b][j] = part[b][j] + set1(a.q[j * a.head_dim + i + k]) * code;
        }
    }
    for (int b = 0; b < B; b++) {
      const F scales = load_half(int4_scales(keys[b], dims) + d);
      for (int j = 0; j < N; j++) s[b][j] = s[b][j] + part[b][j] * scales;
    }
  }
  for (int b = 0; b < B; b++) {
    const int32_t from = here[b] * LANES;
    for (int j = 0; j < N; j++) {
      F v = s[b][j] * set1(a.scale);
      if (a.cap > 0) cap_scores(&v, a.cap);
      show(a.scores + j * a.stride + from - a.first / LANES * LANES, v, a.first - from, a.last - from);
    }
  }
}

// 32 dims from `dim` on.
template <int N>
inline void mix_int4(const Queries& a, int32_t dims, const float (&share)[N], int32_t dim) {
  F y[N][2];
  for (int j = 0; j < N; j++) y[j][0] = y[j][1] = set1(0.f);
  for (int32_t block = a.first / LANES; block * LANES < a.last; block++) {
    const int32_t from = block * LANES, place = from - a.first / LANES * LANES;
    const char* values = values_of<char>(a.cached, block);
    const uint16_t* scales = int4_scales(values, dims) + dim;
    alignas(64) float p[N][2][LANES];  // with the scale of a token's 16 numbers
    for (int j = 0; j < N; j++)
      for (int i = 0; i < 2; i++) store(p[j][i], load(a.scores + j * a.stride + place) * load_half(scales + i * LANES));
    const int32_t begin = a.first > from ? a.first - from : 0, end = a.last - from < LANES ? a.last - from : LANES;
#pragma GCC unroll 1
    for (int32_t t = begin; t < end; t++) {
      const I words = load_unsigned_bytes(values + (dim / 2 + t) * LANES);
      const F low = nibbles(words), high = nibbles(shift_right<4>(words));
      for (int j = 0; j < N; j++) {
        y[j][0] = y[j][0] + set1(p[j][0][t]) * low;
        y[j][1] = y[j][1] + set1(p[j][1][t]) * high;
      }
    }
  }
  for (int j = 0; j < N; j++)
    for (int i = 0; i < 2; i++) {
      const int32_t at = dim + i * LANES, left = a.head_dim - at;
      const F v = y[j][i] * set1(share[j]);
      if (left >= LANES) store(a.y + j * a.head_dim + at, v);
      else if (left > 0) store_n(a.y + j * a.head_dim + at, v, left);
    }
}

template <int N>
void attend_heads_int4(const Queries& a, bool fetch) {
  constexpr int B = SCORE_BLOCKS;  // so few heads would wait for their own sums
  const int32_t first = a.first / LANES, last = (a.last + LANES - 1) / LANES, dims = int4_dims(a.head_dim);
  for (int32_t block = first; block < last; block += B) score_int4<N, B>(a, dims, block, last, fetch);
  float share[N];
  for (int j = 0; j < N; j++) share[j] = 1.f / weigh(a.scores + j * a.stride, (last - first) * LANES);
  for (int32_t dim = 0; dim < a.head_dim; dim += 2 * LANES) mix_int4<N>(a, dims, share, dim);
}

// Heads at once: not four as with floats, and one where registers are small; what more would save is less than the room
// that it takes in the library.
constexpr int INT4_HEADS = MIX_LANES > 1 ? 2 : 1;

struct Int4 {};
template <> inline void attend_some<Int4>(const Queries& a, int32_t heads, bool fetch) {
  Queries part = a;
  for (int32_t n; heads > 0; heads -= n, part.q += n * a.head_dim, part.y += n * a.head_dim, fetch = false) {
    n = heads < INT4_HEADS ? heads : INT4_HEADS;
    n == INT4_HEADS ? attend_heads_int4<INT4_HEADS>(part, fetch) : attend_heads_int4<1>(part, fetch);
  }
}

// Numbers d to d + 15 of a head → unsigned codes; returns their scale, a float16: NaN where a number is not finite or
// too large for it.
__attribute__((noinline)) uint16_t int4_codes(const float* x, int32_t head_dim, int32_t d, int8_t* codes) {
  const int32_t n = head_dim - d;
  const F v = n >= LANES ? load(x + d) : n > 0 ? load_n(x + d, n) : set1(0.f);
  const int32_t bits = largest(as_words(absolute(v)));  // in the order of their bits, what is not finite last
  float peak;
  memcpy(&peak, &bits, 4);
  alignas(32) uint16_t scales[LANES];
  store_half(scales, set1(bits < 0x7f800000 ? peak / MOST_CODE : 0.f));
  const F scale = load_half(scales);
  float step;
  memcpy(&step, &scale, 4);
  F whole = set1(0.f);
  if (step > 0.f && scales[0] < HALF_INFINITY) {
    whole = smaller(set1(MOST_CODE), larger(set1(-MOST_CODE), v * set1(1.f / step)));  // a denormal scale may be far off
  }
  store_bytes(codes, rounded_words(whole) + set1(CODE_OFFSET));
  return bits >= 0x7f800000 || scales[0] >= HALF_INFINITY ? HALF_NAN : scales[0];
}

void store_key_int4(const float* k, int32_t head_dim, int32_t token, void* keys) {
  const int32_t dims = int4_dims(head_dim);
  alignas(16) int8_t codes[LANES];
  for (int32_t d = 0; d < dims; d += LANES) {
    const_cast<uint16_t*>(int4_scales(keys, dims))[d + token] = int4_codes(k, head_dim, d, codes);
    for (int32_t i = 0; i < LANES; i += 8) {
      uint32_t word = 0;
      for (int j = 0; j < 8; j++) word |= uint32_t(codes[i + j]) << 4 * j;
      memcpy(static_cast<char*>(keys) + (d + i) * LANES / 2 + token * 4, &word, 4);
    }
  }
}

void store_value_int4(const float* v, int32_t head_dim, int32_t token, void* values) {
  const int32_t dims = int4_dims(head_dim);
  alignas(16) int8_t codes[2][LANES];
  for (int32_t d = 0; d < dims; d += 2 * LANES) {
    for (int i = 0; i < 2; i++) {
      const int32_t at = d + i * LANES;
      const_cast<uint16_t*>(int4_scales(values, dims))[at + token] = int4_codes(v, head_dim, at, codes[i]);
    }
    char* to = static_cast<char*>(values) + (d / 2 + token) * LANES;
    for (int i = 0; i < LANES; i++) to[i] = char(codes[0][i] | codes[1][i] << 4);
  }
}

}  // namespace
