// 16 lanes in four registers of NEON. What each operation means: simd_portable.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define EACH for (int i = 0; i < 4; i++)

namespace {

struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };

inline F load(const float* p) { F r; EACH r.v[i] = vld1q_f32(p + 4 * i); return r; }
inline void store(float* p, F a) { EACH vst1q_f32(p + 4 * i, a.v[i]); }
inline F load_n(const float* p, int n) {
  float lanes[16] = {};
  memcpy(lanes, p, size_t(n) * 4);
  return load(lanes);
}
inline void store_n(float* p, F a, int n) {
  float lanes[16];
  store(lanes, a);
  memcpy(p, lanes, size_t(n) * 4);
}
// The conversions of ARMv8.0: to nearest even, to infinity, denormal halves are numbers (the alternative format is off).
inline F load_half(const uint16_t* p) {
  F r;
  EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
inline void store_half(uint16_t* p, F a) { EACH vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i]))); }
inline I load_unsigned_bytes(const void* p) {
  const uint8x16_t bytes = vld1q_u8(static_cast<const uint8_t*>(p));
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
      vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
}
inline I load_words(const void* p) { I r; EACH r.v[i] = vld1q_s32(static_cast<const int32_t*>(p) + 4 * i); return r; }

inline F set1(float x) { F r; EACH r.v[i] = vdupq_n_f32(x); return r; }
inline F operator+(F a, F b) { EACH a.v[i] = vaddq_f32(a.v[i], b.v[i]); return a; }
inline F operator-(F a, F b) { EACH a.v[i] = vsubq_f32(a.v[i], b.v[i]); return a; }
inline F operator*(F a, F b) { EACH a.v[i] = vmulq_f32(a.v[i], b.v[i]); return a; }
inline F operator/(F a, F b) { EACH a.v[i] = vdivq_f32(a.v[i], b.v[i]); return a; }
// Comparisons, since vmaxq and vminq make a NaN of either operand a NaN.
inline F larger(F a, F b) { EACH a.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); return a; }
inline F smaller(F a, F b) { EACH a.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); return a; }
inline F absolute(F a) { EACH a.v[i] = vabsq_f32(a.v[i]); return a; }
inline F signed_as(F a, F b) {
  EACH a.v[i] = vbslq_f32(vdupq_n_u32(0x80000000), b.v[i], a.v[i]);
  return a;
}
inline F where_less(F a, F b, F x, F y) { EACH x.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]); return x; }
inline F where_nan(F a, F x, F y) { EACH x.v[i] = vbslq_f32(vceqq_f32(a.v[i], a.v[i]), y.v[i], x.v[i]); return x; }

inline I set1(int32_t x) { I r; EACH r.v[i] = vdupq_n_s32(x); return r; }
inline I operator+(I a, I b) { EACH a.v[i] = vaddq_s32(a.v[i], b.v[i]); return a; }
inline I operator&(I a, I b) { EACH a.v[i] = vandq_s32(a.v[i], b.v[i]); return a; }
inline I larger(I a, I b) { EACH a.v[i] = vmaxq_s32(a.v[i], b.v[i]); return a; }
template <int N> inline I shift_left(I a) { EACH a.v[i] = vshlq_n_s32(a.v[i], N); return a; }
template <int N> inline I shift_right(I a) {
  if constexpr (N > 0) EACH a.v[i] = vshrq_n_s32(a.v[i], N);  // the instruction has no shift by 0
  return a;
}
inline F to_floats(I a) { F r; EACH r.v[i] = vcvtq_f32_s32(a.v[i]); return r; }
inline I as_words(F a) { I r; EACH r.v[i] = vreinterpretq_s32_f32(a.v[i]); return r; }
inline F as_floats(I a) { F r; EACH r.v[i] = vreinterpretq_f32_s32(a.v[i]); return r; }
inline void store_bytes(int8_t* p, I a) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

struct Bytes { int8x16_t v[4]; };
using Factor = Bytes;
inline Bytes load_bytes(const void* p) { Bytes r; EACH r.v[i] = vld1q_s8(static_cast<const int8_t*>(p) + 16 * i); return r; }
inline Factor load_factor(const void* p) { return load_bytes(p); }
inline I no_products(int32_t) { return set1(int32_t{0}); }
// Where there is no dot product, products fit in 16 bits, and neighbours are added in 32.
inline int32x4_t add_products(int32x4_t sum, int8x16_t a, int8x16_t b) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(sum, a, b);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
inline I add_products(I sum, const Factor& a, int32_t word) {
  const int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(word));
  EACH sum.v[i] = add_products(sum.v[i], a.v[i], b);
  return sum;
}
inline I add_shares(I sum, const Bytes& a, int32_t word) { return add_products(sum, a, word); }

inline float sum(F a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float largest(F a) {
  const auto of = [](float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); };
  float four[4];
  vst1q_f32(four, of(of(a.v[0], a.v[2]), of(a.v[1], a.v[3])));
  const float x = four[0] > four[2] ? four[0] : four[2], y = four[1] > four[3] ? four[1] : four[3];
  return x > y ? x : y;
}
inline int32_t sum(I a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }
inline int32_t largest(I a) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3]))); }

inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace

#undef EACH
