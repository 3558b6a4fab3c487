// A tile of int8 products with AVX2: maddubs multiplies unsigned bytes with signed ones and adds neighbours, saturating
// at 16 bits, which is never reached: int4 adds 8 products of at most 15 · 127, int8 adds 2 of at most 128 · 127.
#pragma once

#include "codes.h"

namespace {

inline __m256i words_of(const int8_t* x) { return _mm256_set1_epi32(four(x)); }
inline __m256i in_words(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// sums[m] += 8 · Steps columns, 16 or 32, of 8 rows of the matrix, whose bytes are 64 apart.
template <int M, int Steps>
inline void add_int4(const uint8_t* w, const Factors& f, int32_t k, __m256i (&sums)[M]) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i pairs[M];
  for (int m = 0; m < M; m++) pairs[m] = _mm256_setzero_si256();
#pragma GCC unroll 1  // unrolled, four rows want more registers than there are, and take 1.4 times as long
  for (int step = 0; step < Steps; step++) {
    const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + step * 64));
    const __m256i v0 = _mm256_and_si256(bytes, low), v1 = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      const int8_t* x = f.x + int64_t(m) * f.stride + k + step * 8;
      const __m256i eight = _mm256_add_epi16(_mm256_maddubs_epi16(v0, words_of(x)), _mm256_maddubs_epi16(v1, words_of(x + 4)));
      pairs[m] = _mm256_add_epi16(pairs[m], eight);
    }
  }
  for (int m = 0; m < M; m++) sums[m] = _mm256_add_epi32(sums[m], in_words(pairs[m]));
}

// Weights without their sign times activations with the product's: the offset of the codes is gone, so what takes it
// away from sums of unsigned codes is not added.
template <int M>
inline void add_int8(const uint8_t* w, const Factors& f, int32_t k, __m256i (&sums)[M]) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + j * 64));
    const __m256i v = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), size = _mm256_abs_epi8(v);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      const __m256i x = _mm256_sign_epi8(words_of(f.x + int64_t(m) * f.stride + k + j * 4), v);
      sums[m] = _mm256_add_epi32(sums[m], in_words(_mm256_maddubs_epi16(size, x)));
    }
  }
}

template <Kind kind, int M>
void codes_tile(const Factors& f, F* y) {
  constexpr int bytes = kind == Kind::int4 ? 128 : 256;  // of 16 columns
  for (int m = 0; m < M; m++) y[m] = set1(0.f);
  for (int half = 0; half < 2; half++) {  // 16 registers hold 8 rows of the matrix at a time
    const uint8_t* w = f.weights + half * 32;
    for (int32_t g = 0, from = 0; g < f.groups; g++, from += f.group) {
      const int32_t to = from + f.group < f.stride ? from + f.group : f.stride;
      __m256i sums[M];
      for (int m = 0; m < M; m++) {
        sums[m] = kind == Kind::int4 ? _mm256_set1_epi32(f.x_sums[m * f.groups + g]) : _mm256_setzero_si256();
      }
      int32_t k = from;
      if constexpr (kind == Kind::int4) {
        for (; k + 32 <= to; k += 32, w += 2 * bytes) {
          if (half == 0)
            for (int i = 0; i < 2 * bytes; i += 64) prefetch(w + i + AHEAD);
          add_int4<M, 4>(w, f, k, sums);
        }
        if (k < to) add_int4<M, 2>(w, f, k, sums), w += bytes;
      } else {
        for (; k < to; k += 16, w += bytes) {
          if (half == 0)
            for (int i = 0; i < bytes; i += 64) prefetch(w + i + AHEAD);
          add_int8<M>(w, f, k, sums);
        }
      }
      const __m256 scale = _mm256_cvtph_ps(quarter(f.scales + g * LANES + half * 8));
      for (int m = 0; m < M; m++) {
        const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(f.x_scales[m * f.groups + g]));
        __m256& acc = half == 0 ? y[m].a : y[m].b;
        acc = _mm256_add_ps(acc, _mm256_mul_ps(_mm256_cvtepi32_ps(sums[m]), both));
      }
    }
  }
}

}  // namespace
