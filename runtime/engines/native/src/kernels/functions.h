// exp, tanh, erf and the activations on 16 lanes, made of the operations of simd_*.h: the same bits everywhere.
// Errors against exact values, measured over all floats of the ranges that matter (test_functions.cpp holds them):
// exp 2 units in the last place, tanh 3, erf 1.2e-7, log1p 2e-7 of the value.
#pragma once

#include "kernels.h"

namespace {

using edgeloop::LANES;

constexpr float MAGIC = 12582912.f;        // 1.5 * 2^23: adding it leaves a whole number in the last bits
constexpr int32_t MAGIC_BITS = 0x4b400000;  // its own

// To the nearest whole number, half to even, for sizes below 2^22.
inline F rounded(F x) { return (x + set1(MAGIC)) - set1(MAGIC); }
inline I rounded_words(F x) { return as_words(x + set1(MAGIC)) + set1(-MAGIC_BITS); }

// 2^n for whole n from -126 to 127.
inline F power_of_two(F n) { return as_floats(shift_left<23>(as_words(n + set1(MAGIC))) + set1(int32_t{0x3f800000})); }

// Sums from the highest coefficient down: c[0] * x^(N-1) + ... + c[N-1].
template <int N>
inline F polynomial(F x, const float (&c)[N]) {
  F y = set1(c[0]);
  for (int i = 1; i < N; i++) y = y * x + set1(c[i]);
  return y;
}

// e^x = 2^n * e^r. 2^n in two factors, so that results may be denormal, 0 or infinite.
inline F exp_of(F x) {
  static constexpr float COEFFICIENTS[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                            4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  x = smaller(set1(89.f), larger(set1(-104.f), x));
  const F n = rounded(x * set1(1.44269504f)), half = rounded(n * set1(0.5f));
  const F r = (x - n * set1(0.693359375f)) + n * set1(2.12194440e-4f);
  const F y = ((r * r) * polynomial(r, COEFFICIENTS) + r) + set1(1.f);
  return (y * power_of_two(half)) * power_of_two(n - half);
}

inline F tanh_of(F x) {
  static constexpr float COEFFICIENTS[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                            1.33314422036e-1f, -3.33332819422e-1f};
  const F size = absolute(x), z = x * x;
  const F near = (x * z) * polynomial(z, COEFFICIENTS) + x;
  const F far = set1(1.f) - set1(2.f) / (exp_of(size + size) + set1(1.f));
  return where_less(size, set1(0.625f), near, signed_as(far, x));
}

// Above 1: 1 - e^-q, q a fit of -ln(erfc x) up to 4, where the float next to erf x is 1.
inline F erf_of(F x) {
  static constexpr float NEAR[] = {7.853861353e-5f, -8.010193625e-4f, 5.188327685e-3f, -2.685381193e-2f,
                                    1.128358515e-1f, -3.761262582e-1f, 1.128379167f};
  static constexpr float FAR[] = {-1.6140616e-6f,  4.5590623e-5f, -5.92769531e-4f, 4.74022236e-3f, -2.63647176e-2f,
                                   1.09978244e-1f, 6.31937087e-1f, 1.13016665f,     -3.0321299e-4f};
  const F size = absolute(x), upper = smaller(set1(4.f), size);
  const F near = x * polynomial(x * x, NEAR);
  const F far = set1(1.f) - exp_of(set1(0.f) - polynomial(upper, FAR));
  return where_less(size, set1(1.f), near, signed_as(far, x));
}

// ln(1 + t) for t from 0 to 1: 2 * artanh(t / (2 + t)).
inline F log1p_of(F t) {
  static constexpr float COEFFICIENTS[] = {1.3433805e-1f, 1.41169727e-1f, 2.00038359e-1f, 3.33333194e-1f};
  const F s = t / (t + set1(2.f)), z = s * s, twice = s + s;
  return twice * (z * polynomial(z, COEFFICIENTS)) + twice;
}

inline F silu(F x) { return x / (set1(1.f) + exp_of(set1(0.f) - x)); }
inline F gelu(F x) { return (x * set1(0.5f)) * (erf_of(x * set1(0.70710678f)) + set1(1.f)); }
inline F gelu_tanh(F x) {
  const F u = set1(1.59576912f) * (((x * x) * x) * set1(0.044715f) + x);
  return x / (set1(1.f) + exp_of(set1(0.f) - u));
}
inline F relu(F x) { return larger(set1(0.f), x); }
inline F relu2(F x) { return relu(x) * relu(x); }
inline F sigmoid(F x) { return set1(1.f) / (set1(1.f) + exp_of(set1(0.f) - x)); }
inline F softplus(F x) { return larger(set1(0.f), x) + log1p_of(exp_of(set1(0.f) - absolute(x))); }

}  // namespace
