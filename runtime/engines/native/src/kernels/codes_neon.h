// A tile of int8 products with NEON, three ways. Which one: the file that includes this says it (neon.cpp, dotprod.cpp,
// i8mm.cpp). Weights are signed bytes for all of them: int4 codes are (their offset is in the sums of a row), int8 codes become so
// by turning their first bit over, which takes their offset away.
#pragma once

#include "codes.h"

namespace {

// 16 bytes of the file, 4 rows: of int4 two times 4 columns, of int8 4.
inline int8x16_t low_codes(uint8x16_t bytes) { return vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))); }
inline int8x16_t high_codes(uint8x16_t bytes) { return vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)); }
inline int8x16_t around_zero(uint8x16_t bytes) { return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128))); }

template <Kind kind> constexpr int bytes_of_8 = kind == Kind::int4 ? 64 : 128;  // of 8 columns of a tile

// Columns 0 to 3 and 4 to 7 of the 8 at w, of 4 rows from 4 · quarter on: one word a row.
template <Kind kind>
inline void eight_columns(const uint8_t* w, int quarter, int8x16_t& first, int8x16_t& second) {
  const uint8x16_t bytes = vld1q_u8(w + quarter * 16);
  if constexpr (kind == Kind::int4) first = low_codes(bytes), second = high_codes(bytes);
  else first = around_zero(bytes), second = around_zero(vld1q_u8(w + 64 + quarter * 16));
}

template <Kind kind>
inline void fetch(const uint8_t* w) {
  for (int i = 0; i < bytes_of_8<kind>; i += 64) prefetch(w + i + AHEAD);
}

// What sums start with.
template <Kind kind>
inline int32_t offset(const Factors& f, int m, int32_t g) {
  return kind == Kind::int4 ? f.x_sums[m * f.groups + g] : 0;
}

inline void add_group(const Factors& f, int m, int32_t g, F scale, I sums, F& y) {
  y = y + to_floats(sums) * (scale * set1(f.x_scales[m * f.groups + g]));
}

inline int8x16_t words_of(const int8_t* x) { return vreinterpretq_s8_s32(vdupq_n_s32(four(x))); }

// ARMv8.0: products of bytes are added in 16 bits, two of them at most 2 · 128 · 127 and eight of int4 codes at most
// 8 · 15 · 127, then in 32 bits. Four rows of the matrix at a time; a row's columns are in two sums of each.
template <Kind kind, int M>
void codes_tile_plain(const Factors& f, F* y) {
  constexpr int together = kind == Kind::int4 ? 4 : 1;  // times 8 columns
  for (int m = 0; m < M; m++) y[m] = set1(0.f);
  for (int quarter = 0; quarter < 4; quarter++) {
    const uint8_t* w = f.weights;
    for (int32_t g = 0, from = 0; g < f.groups; g++, from += f.group) {
      const int32_t to = from + f.group < f.stride ? from + f.group : f.stride;
      int32x4_t sums[M][2];
      for (int m = 0; m < M; m++) sums[m][0] = sums[m][1] = vdupq_n_s32(0);
      for (int32_t k = from; k < to;) {
        int16x8_t pairs[M][2];
        for (int m = 0; m < M; m++) pairs[m][0] = pairs[m][1] = vdupq_n_s16(0);
        for (int i = 0; i < together && k < to; i++, k += 8, w += bytes_of_8<kind>) {
          int8x16_t a, b;
          eight_columns<kind>(w, quarter, a, b);
          if (quarter == 0) fetch<kind>(w);
          for (int m = 0; m < M; m++) {
            const int8_t* x = f.x + int64_t(m) * f.stride + k;
            const int8x16_t p = words_of(x), q = words_of(x + 4);
            pairs[m][0] = vmlal_s8(vmlal_s8(pairs[m][0], vget_low_s8(a), vget_low_s8(p)), vget_low_s8(b), vget_low_s8(q));
            pairs[m][1] = vmlal_high_s8(vmlal_high_s8(pairs[m][1], a, p), b, q);
          }
        }
        for (int m = 0; m < M; m++)
          for (int i = 0; i < 2; i++) sums[m][i] = vpadalq_s16(sums[m][i], pairs[m][i]);
      }
      const float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(f.scales + g * LANES + quarter * 4)));
      for (int m = 0; m < M; m++) {
        const int32x4_t whole = vaddq_s32(vpaddq_s32(sums[m][0], sums[m][1]), vdupq_n_s32(offset<kind>(f, m, g)));
        const float32x4_t both = vmulq_f32(scale, vdupq_n_f32(f.x_scales[m * f.groups + g]));
        y[m].v[quarter] = vaddq_f32(y[m].v[quarter], vmulq_f32(vcvtq_f32_s32(whole), both));
      }
    }
  }
}

#if defined(__ARM_FEATURE_DOTPROD)

// sdot multiplies the 4 bytes of each lane with the 4 of one lane of the codes, and adds.
template <Kind kind, int M>
void codes_tile_dot(const Factors& f, F* y) {
  const uint8_t* w = f.weights;
  for (int m = 0; m < M; m++) y[m] = set1(0.f);
  for (int32_t g = 0, from = 0; g < f.groups; g++, from += f.group) {
    const int32_t to = from + f.group < f.stride ? from + f.group : f.stride;
    I sums[M];
    for (int m = 0; m < M; m++) sums[m] = set1(offset<kind>(f, m, g));
    for (int32_t k = from; k < to; k += 8, w += bytes_of_8<kind>) {
      int8x8_t x[M];
      for (int m = 0; m < M; m++) x[m] = vld1_s8(f.x + int64_t(m) * f.stride + k);
      fetch<kind>(w);
      for (int quarter = 0; quarter < 4; quarter++) {
        int8x16_t a, b;
        eight_columns<kind>(w, quarter, a, b);
        for (int m = 0; m < M; m++) {
          int32x4_t& sum = sums[m].v[quarter];
          sum = vdotq_lane_s32(vdotq_lane_s32(sum, a, x[m], 0), b, x[m], 1);
        }
      }
    }
    const F scale = load_half(f.scales + g * LANES);
    for (int m = 0; m < M; m++) add_group(f, m, g, scale, sums[m], y[m]);
  }
}

#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)

// smmla multiplies 8 bytes of two rows of codes with 8 of two rows of the matrix: four sums. Of an odd number of rows the
// last one is there twice.
template <Kind kind, int M>
void codes_tile_mmla(const Factors& f, F* y) {
  constexpr int pairs = (M + 1) / 2;
  const uint8_t* w = f.weights;
  for (int m = 0; m < M; m++) y[m] = set1(0.f);
  for (int32_t g = 0, from = 0; g < f.groups; g++, from += f.group) {
    const int32_t to = from + f.group < f.stride ? from + f.group : f.stride;
    int32x4_t sums[pairs][8];
    for (int p = 0; p < pairs; p++)
      for (int i = 0; i < 8; i++) sums[p][i] = vdupq_n_s32(0);
    for (int32_t k = from; k < to; k += 8, w += bytes_of_8<kind>) {
      int8x16_t x[pairs];
      for (int p = 0; p < pairs; p++) {
        const int second = 2 * p + 1 < M ? 2 * p + 1 : 2 * p;
        x[p] = vcombine_s8(vld1_s8(f.x + int64_t(2 * p) * f.stride + k), vld1_s8(f.x + int64_t(second) * f.stride + k));
      }
      fetch<kind>(w);
      for (int quarter = 0; quarter < 4; quarter++) {
        int8x16_t a, b;
        eight_columns<kind>(w, quarter, a, b);
        const int32x4_t a_words = vreinterpretq_s32_s8(a), b_words = vreinterpretq_s32_s8(b);
        const int8x16_t rows01 = vreinterpretq_s8_s32(vzip1q_s32(a_words, b_words));
        const int8x16_t rows23 = vreinterpretq_s8_s32(vzip2q_s32(a_words, b_words));
        for (int p = 0; p < pairs; p++) {
          sums[p][2 * quarter] = vmmlaq_s32(sums[p][2 * quarter], x[p], rows01);
          sums[p][2 * quarter + 1] = vmmlaq_s32(sums[p][2 * quarter + 1], x[p], rows23);
        }
      }
    }
    const F scale = load_half(f.scales + g * LANES);
    for (int m = 0; m < M; m++) {
      I whole = set1(offset<kind>(f, m, g));
      for (int quarter = 0; quarter < 4; quarter++) {
        const int64x2_t left = vreinterpretq_s64_s32(sums[m / 2][2 * quarter]);
        const int64x2_t right = vreinterpretq_s64_s32(sums[m / 2][2 * quarter + 1]);
        const int64x2_t row = m % 2 ? vzip2q_s64(left, right) : vzip1q_s64(left, right);
        whole.v[quarter] = vaddq_s32(whole.v[quarter], vreinterpretq_s32_s64(row));
      }
      add_group(f, m, g, scale, whole, y[m]);
    }
  }
}

#endif

}  // namespace
