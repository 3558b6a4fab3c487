// 16 lanes in a register of AVX-512 (F, BW, VL, DQ). What each operation means: simd_portable.h.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 says it of its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct F { __m512 v; };
struct I { __m512i v; };

inline __mmask16 first_lanes(int n) { return __mmask16((1u << n) - 1); }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline void store_n(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
inline F load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline void store_half(uint16_t* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline I load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
inline I load_unsigned_bytes(const void* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }

inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F larger(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F smaller(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F absolute(F a) { return {_mm512_abs_ps(a.v)}; }
inline F signed_as(F a, F b) {
  const __m512 sign = _mm512_set1_ps(-0.f);
  return {_mm512_or_ps(_mm512_andnot_ps(sign, a.v), _mm512_and_ps(sign, b.v))};
}
inline F where_less(F a, F b, F x, F y) { return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)}; }
inline F where_nan(F a, F x, F y) { return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), y.v, x.v)}; }

inline I set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I operator&(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
template <int N> inline I shift_left(I a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N> inline I shift_right(I a) { return {_mm512_srli_epi32(a.v, N)}; }
inline I larger(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline F to_floats(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I as_words(F a) { return {_mm512_castps_si512(a.v)}; }
inline F as_floats(I a) { return {_mm512_castsi512_ps(a.v)}; }
inline void store_bytes(int8_t* p, I a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v)); }

struct Bytes { __m512i v; };
struct Factor { __m512i v; };  // 128 more, so that they are unsigned
inline Bytes load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
inline Factor load_factor(const void* p) { return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))}; }
inline I no_products(int32_t offset) { return set1(offset); }
inline I add_products(I sum, const Factor& a, int32_t word) { return {_mm512_dpbusd_epi32(sum.v, a.v, _mm512_set1_epi32(word))}; }
inline I add_shares(I sum, const Bytes& a, int32_t word) { return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi32(word), a.v)}; }

inline float sum(F a) {
  const __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
inline float largest(F a) {
  const __m256 x = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}
inline int32_t sum(I a) { return _mm512_reduce_add_epi32(a.v); }
inline int32_t largest(I a) { return _mm512_reduce_max_epi32(a.v); }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
