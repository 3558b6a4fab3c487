// 16 lanes in two registers of AVX2 with F16C. What each operation means: simd_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct F { __m256 a, b; };
struct I { __m256i a, b; };

inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline F load_n(const float* p, int n) {
  alignas(32) float lanes[16] = {};
  memcpy(lanes, p, size_t(n) * 4);
  return load(lanes);
}
inline void store_n(float* p, F x, int n) {
  alignas(32) float lanes[16];
  store(lanes, x);
  memcpy(p, lanes, size_t(n) * 4);
}
inline __m128i quarter(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline F load_half(const uint16_t* p) { return {_mm256_cvtph_ps(quarter(p)), _mm256_cvtph_ps(quarter(p + 8))}; }
inline void store_half(uint16_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline I load_words(const void* p) {
  const __m256i* words = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
inline I load_unsigned_bytes(const void* p) {
  const __m128i bytes = quarter(p);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}

#define BOTH(name, of) \
  inline F name(F x, F y) { return {of(x.a, y.a), of(x.b, y.b)}; }
BOTH(operator+, _mm256_add_ps)
BOTH(operator-, _mm256_sub_ps)
BOTH(operator*, _mm256_mul_ps)
BOTH(operator/, _mm256_div_ps)
BOTH(larger, _mm256_max_ps)
BOTH(smaller, _mm256_min_ps)
#undef BOTH
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F absolute(F x) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F signed_as(F x, F y) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  const F size = absolute(x);
  return {_mm256_or_ps(size.a, _mm256_and_ps(sign, y.a)), _mm256_or_ps(size.b, _mm256_and_ps(sign, y.b))};
}
inline F where_less(F a, F b, F x, F y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
      _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
inline F where_nan(F a, F x, F y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, a.a, _CMP_UNORD_Q)),
      _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, a.b, _CMP_UNORD_Q))};
}

#define BOTH(name, of) \
  inline I name(I x, I y) { return {of(x.a, y.a), of(x.b, y.b)}; }
BOTH(operator+, _mm256_add_epi32)
BOTH(operator&, _mm256_and_si256)
BOTH(larger, _mm256_max_epi32)
#undef BOTH
inline I set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
template <int N> inline I shift_left(I x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
template <int N> inline I shift_right(I x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
inline F to_floats(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I as_words(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline F as_floats(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline void store_bytes(int8_t* p, I x) {  // saturating packs: the numbers fit
  const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(x.a), _mm256_extracti128_si256(x.a, 1));
  const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(x.b), _mm256_extracti128_si256(x.b, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(low, high));
}

struct Bytes { __m256i a, b; };
inline Bytes load_bytes(const void* p) {
  const __m256i* words = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
#if defined(__AVXVNNI__)
struct Factor { __m256i a, b; };  // 128 more, so that they are unsigned
inline Factor load_factor(const void* p) {
  const Bytes x = load_bytes(p);
  const __m256i sign = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(x.a, sign), _mm256_xor_si256(x.b, sign)};
}
inline I no_products(int32_t offset) { return set1(offset); }
inline I add_products(I sum, const Factor& x, int32_t word) {
  const __m256i y = _mm256_set1_epi32(word);
  return {_mm256_dpbusd_avx_epi32(sum.a, x.a, y), _mm256_dpbusd_avx_epi32(sum.b, x.b, y)};
}
inline I add_shares(I sum, const Bytes& x, int32_t word) {
  const __m256i y = _mm256_set1_epi32(word);
  return {_mm256_dpbusd_avx_epi32(sum.a, y, x.a), _mm256_dpbusd_avx_epi32(sum.b, y, x.b)};
}
#else
// maddubs adds pairs of products of unsigned and signed bytes, at most 2 · 128 · 127: nothing saturates.
struct Factor { Bytes bytes, sizes; };
inline Factor load_factor(const void* p) {
  const Bytes x = load_bytes(p);
  return {x, {_mm256_abs_epi8(x.a), _mm256_abs_epi8(x.b)}};
}
inline I no_products(int32_t) { return set1(int32_t{0}); }
inline __m256i products(__m256i unsigned_bytes, __m256i bytes) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_bytes, bytes), _mm256_set1_epi16(1));
}
inline I add_products(I sum, const Factor& x, int32_t word) {
  const __m256i y = _mm256_set1_epi32(word);
  return sum + I{products(x.sizes.a, _mm256_sign_epi8(y, x.bytes.a)), products(x.sizes.b, _mm256_sign_epi8(y, x.bytes.b))};
}
inline I add_shares(I sum, const Bytes& x, int32_t word) {
  const __m256i y = _mm256_set1_epi32(word);
  return sum + I{products(y, x.a), products(y, x.b)};
}
#endif

inline float sum(F x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
inline float largest(F x) {
  const __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}
inline int32_t sum(I x) {
  const __m256i s = _mm256_add_epi32(x.a, x.b);
  __m128i y = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
inline int32_t largest(I x) {
  const __m256i s = _mm256_max_epi32(x.a, x.b);
  __m128i y = _mm_max_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
