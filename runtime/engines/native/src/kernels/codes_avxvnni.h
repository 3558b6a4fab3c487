// A tile of int8 products with AVX-VNNI: dpbusd as in codes_avx512.h, in registers of half the width, of which there are half as many.
#pragma once

#include "codes.h"

namespace {

inline __m256i half_of_tile(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

// What _mm256_dpbusd_avx_epi32 does. As an intrinsic, GCC 12 moves sums from register to register and to the stack: 4 rows
// and more then take 1.2 to 1.4 times as long.
inline void add_dots(__m256i& sums, __m256i codes, __m256i x) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(x));
}

// sums += 4 columns of the 16 rows times those of M rows of codes.
template <int M, int Chains>
inline void add_four(const Factors& f, int32_t k, __m256i low, __m256i high, __m256i (&sums)[M][Chains][2], int chain) {
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    const __m256i x = _mm256_set1_epi32(four(f.x + int64_t(m) * f.stride + k));
    add_dots(sums[m][chain][0], low, x);
    add_dots(sums[m][chain][1], high, x);
  }
}

template <Kind kind, int M>
void codes_tile(const Factors& f, F* y) {
  constexpr int chains = M <= 2 ? 2 : 1;  // a sum waits 4 or 5 cycles for the one before it
  const __m256i nibble = _mm256_set1_epi8(15);
  const uint8_t* w = f.weights;
  for (int m = 0; m < M; m++) y[m] = set1(0.f);
  for (int32_t g = 0, from = 0; g < f.groups; g++, from += f.group) {
    const int32_t to = from + f.group < f.stride ? from + f.group : f.stride;
    __m256i sums[M][chains][2];
    for (int m = 0; m < M; m++) {
      sums[m][0][0] = sums[m][0][1] = _mm256_set1_epi32(f.x_sums[m * f.groups + g]);
      for (int c = 1; c < chains; c++) sums[m][c][0] = sums[m][c][1] = _mm256_setzero_si256();
    }
    for (int32_t k = from; k < to; k += 8, w += 64) {
      const __m256i a = half_of_tile(w), b = half_of_tile(w + 32);
      prefetch(w + AHEAD);
      if constexpr (kind == Kind::int4) {
        add_four<M, chains>(f, k, _mm256_and_si256(a, nibble), _mm256_and_si256(b, nibble), sums, 0);
        add_four<M, chains>(f, k + 4, _mm256_and_si256(_mm256_srli_epi16(a, 4), nibble), _mm256_and_si256(_mm256_srli_epi16(b, 4), nibble),
                            sums, chains - 1);
      } else {
        add_four<M, chains>(f, k, a, b, sums, 0);
        w += 64;
        prefetch(w + AHEAD);
        add_four<M, chains>(f, k + 4, half_of_tile(w), half_of_tile(w + 32), sums, chains - 1);
      }
    }
    const F scale = load_half(f.scales + g * LANES);
    for (int m = 0; m < M; m++) {
      if (chains == 2)
        for (int h = 0; h < 2; h++) sums[m][0][h] = _mm256_add_epi32(sums[m][0][h], sums[m][chains - 1][h]);
      y[m] = y[m] + to_floats(I{sums[m][0][0], sums[m][0][1]}) * (scale * set1(f.x_scales[m * f.groups + g]));
    }
  }
}

}  // namespace
