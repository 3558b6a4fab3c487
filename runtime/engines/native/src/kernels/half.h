// float16 by whole numbers: what F16C's instructions do, for processors without, and as their model in tests.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// Rounds to nearest even; what is too large becomes infinity, a NaN stays one.
inline uint16_t half_of(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00 | (size >> 13 & 0x3ff));
  if (size >= 0x47800000) return uint16_t(sign | 0x7c00);  // 65536 and more; what rounds up to it carries into it below
  if (size < 0x38800000) {  // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the last bits, rounded by the addition
    return uint16_t(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000));
  }
  const uint32_t odd = size >> 13 & 1;
  return uint16_t(sign | ((size - 0x38000000 + 0xfff + odd) >> 13));
}

inline float float_of_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, size = half & 0x7fff;
  if (size > 0x7c00) return float_of(sign | 0x7fc00000 | size << 13);
  if (size == 0x7c00) return float_of(sign | 0x7f800000);
  if (size >= 0x400) return float_of(sign | ((size << 13) + 0x38000000));
  return float_of(sign | bits_of(float(size) * 0x1p-24f));
}

}  // namespace
