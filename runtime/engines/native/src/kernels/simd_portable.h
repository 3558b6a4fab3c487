// 16 lanes in plain C++: what each operation means. The other simd_*.h have the same names and the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

#define EACH for (int i = 0; i < 16; i++)

namespace {

struct F { float v[16]; };    // floats
struct I { int32_t v[16]; };  // whole numbers; sums and products wrap around

// --- memory; _n: the first n lanes, the others are zero or not written -------------------------------------------------
inline F load(const float* p) { F r; memcpy(r.v, p, 64); return r; }
inline F load_n(const float* p, int n) { F r{}; memcpy(r.v, p, size_t(n) * 4); return r; }
inline void store(float* p, F a) { memcpy(p, a.v, 64); }
inline void store_n(float* p, F a, int n) { memcpy(p, a.v, size_t(n) * 4); }
inline F load_half(const uint16_t* p) { F r; EACH r.v[i] = float_of_half(p[i]); return r; }
inline void store_half(uint16_t* p, F a) { EACH p[i] = half_of(a.v[i]); }
inline I load_words(const void* p) { I r; memcpy(r.v, p, 64); return r; }
inline I load_unsigned_bytes(const void* p) { I r; EACH r.v[i] = static_cast<const uint8_t*>(p)[i]; return r; }

// --- floats ----------------------------------------------------------------------------------------------------------
inline F set1(float x) { F r; EACH r.v[i] = x; return r; }
inline F operator+(F a, F b) { EACH a.v[i] += b.v[i]; return a; }
inline F operator-(F a, F b) { EACH a.v[i] -= b.v[i]; return a; }
inline F operator*(F a, F b) { EACH a.v[i] *= b.v[i]; return a; }
inline F operator/(F a, F b) { EACH a.v[i] /= b.v[i]; return a; }
// b where one of them is a NaN.
inline F larger(F a, F b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
inline F smaller(F a, F b) { EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
inline F absolute(F a) { EACH a.v[i] = float_of(bits_of(a.v[i]) & 0x7fffffff); return a; }
// The size of a with the sign of b.
inline F signed_as(F a, F b) {
  EACH a.v[i] = float_of((bits_of(a.v[i]) & 0x7fffffff) | (bits_of(b.v[i]) & 0x80000000));
  return a;
}
// a < b ? x : y, y where a or b is a NaN.
inline F where_less(F a, F b, F x, F y) { EACH x.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i]; return x; }
inline F where_nan(F a, F x, F y) { EACH x.v[i] = a.v[i] != a.v[i] ? x.v[i] : y.v[i]; return x; }

// --- whole numbers ---------------------------------------------------------------------------------------------------
inline I set1(int32_t x) { I r; EACH r.v[i] = x; return r; }
inline I operator+(I a, I b) { EACH a.v[i] = int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i])); return a; }
inline I operator&(I a, I b) { EACH a.v[i] &= b.v[i]; return a; }
template <int N> inline I shift_left(I a) { EACH a.v[i] = int32_t(uint32_t(a.v[i]) << N); return a; }
template <int N> inline I shift_right(I a) { EACH a.v[i] = int32_t(uint32_t(a.v[i]) >> N); return a; }
inline I larger(I a, I b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
inline F to_floats(I a) { F r; EACH r.v[i] = float(a.v[i]); return r; }
inline I as_words(F a) { I r; memcpy(r.v, a.v, 64); return r; }
inline F as_floats(I a) { F r; memcpy(r.v, a.v, 64); return r; }
// The low bytes of whole numbers from -128 to 127.
inline void store_bytes(int8_t* p, I a) { EACH p[i] = int8_t(a.v[i]); }

// --- bytes: four to a lane; a word has four for all lanes -------------------------------------------------------------------
struct Bytes { int8_t v[64]; };   // signed
struct Factor { int8_t v[64]; };  // the same, prepared for add_products
inline Bytes load_bytes(const void* p) { Bytes r; memcpy(r.v, p, 64); return r; }
inline Factor load_factor(const void* p) { Factor r; memcpy(r.v, p, 64); return r; }
// What sums of products begin with, where -128 times the sum of all bytes of their words is known.
inline I no_products(int32_t) { return {}; }
// Each lane's four products with the bytes of a word, from -127 to 127, are added to it.
inline I add_products(I sum, const Factor& a, int32_t word) {
  int8_t b[4];
  memcpy(b, &word, 4);
  EACH for (int j = 0; j < 4; j++) sum.v[i] += a.v[4 * i + j] * b[j];
  return sum;
}
// The same with bytes from 0 to 127.
inline I add_shares(I sum, const Bytes& a, int32_t word) {
  int8_t b[4];
  memcpy(b, &word, 4);
  EACH for (int j = 0; j < 4; j++) sum.v[i] += a.v[4 * i + j] * b[j];
  return sum;
}

// --- over lanes: halves are folded onto each other, 16 → 8 → 4 → 2 → 1 ---------------------------------------------------
inline float sum(F a) {
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) a.v[i] += a.v[i + n];
  return a.v[0];
}
inline float largest(F a) {
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) a.v[i] = a.v[i] > a.v[i + n] ? a.v[i] : a.v[i + n];
  return a.v[0];
}
inline int32_t sum(I a) { uint32_t s = 0; EACH s += uint32_t(a.v[i]); return int32_t(s); }
inline int32_t largest(I a) { int32_t m = a.v[0]; EACH m = a.v[i] > m ? a.v[i] : m; return m; }

inline void prefetch(const void*) {}

}  // namespace

#undef EACH
