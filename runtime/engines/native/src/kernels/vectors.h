// What works on one vector at a time: elementwise kernels, norms, softmax, argmax, conversions.
#pragma once

#include <cmath>

#include "functions.h"

namespace {

using edgeloop::Best;

// y[i] = of(x[i]), 16 at a time; the last ones with zeros behind them.
template <class Of>
inline void each(const float* x, int32_t n, float* y, Of of) {
  int32_t i = 0;
  for (; i + LANES <= n; i += LANES) store(y + i, of(load(x + i)));
  if (i < n) store_n(y + i, of(load_n(x + i, n - i)), n - i);
}

template <class Of>
inline void each(const float* a, const float* b, int32_t n, float* y, Of of) {
  int32_t i = 0;
  for (; i + LANES <= n; i += LANES) store(y + i, of(load(a + i), load(b + i)));
  if (i < n) store_n(y + i, of(load_n(a + i, n - i), load_n(b + i, n - i)), n - i);
}

template <F (*function)(F)>
void act(const float* x, int32_t n, float* y) {
  each(x, n, y, [](F v) { return function(v); });
}

void add(const float* a, const float* b, int32_t n, float* y) {
  each(a, b, n, y, [](F u, F v) { return u + v; });
}

void mul(const float* a, const float* b, int32_t n, float* y) {
  each(a, b, n, y, [](F u, F v) { return u * v; });
}

void scale(const float* x, int32_t n, float factor, const float* w, float offset, float* y) {
  const F c = set1(factor), b = set1(offset);
  if (w) each(x, w, n, y, [=](F u, F v) { return (u * c) * v + b; });
  else each(x, n, y, [=](F u) { return u * c + b; });
}

void add_scaled(const float* x, int32_t n, float factor, float* y) {
  const F c = set1(factor);
  each(y, x, n, y, [=](F u, F v) { return u + c * v; });
}

void blend(const float* a, const float* b, int32_t n, float g, float* y) {
  const F one = set1(g), other = set1(1.f - g);
  each(a, b, n, y, [=](F u, F v) { return one * u + other * v; });
}

void softcap(const float* x, int32_t n, float cap, float* y) {
  const F c = set1(cap);
  each(x, n, y, [=](F u) { return c * tanh_of(u / c); });
}

void rotate_halves(const float* x, int32_t n, int32_t dims, const float* cos, const float* sin, float* y) {
  const int32_t half = dims / 2;
  int32_t i = 0;
  for (; i + LANES <= half; i += LANES) {
    const F a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(y + i, a * c - b * s);
    store(y + half + i, b * c + a * s);
  }
  if (const int32_t rest = half - i) {
    const F a = load_n(x + i, rest), b = load_n(x + half + i, rest), c = load_n(cos + i, rest), s = load_n(sin + i, rest);
    store_n(y + i, a * c - b * s, rest);
    store_n(y + half + i, b * c + a * s, rest);
  }
  if (y != x) memcpy(y + dims, x + dims, size_t(n - dims) * 4);
}

void rotate_pairs(const float* x, int32_t n, int32_t dims, const float* cos, const float* sin, float* y) {
  for (int32_t i = 0; i < dims / 2; i++) {
    const float a = x[2 * i], b = x[2 * i + 1];
    y[2 * i] = a * cos[i] - b * sin[i];
    y[2 * i + 1] = b * cos[i] + a * sin[i];
  }
  if (y != x) memcpy(y + dims, x + dims, size_t(n - dims) * 4);
}

// The sum of of(x[i]) for i from 0 to n - 1: 16 at a time into sums 0, 1, 2, 3, 0, ...; these are then added.
// `of` makes 0 of the zeros behind the last ones, or is told how many count.
template <class Of>
inline float sum_over(const float* x, int32_t n, Of of) {
  F s[4] = {set1(0.f), set1(0.f), set1(0.f), set1(0.f)};
  int32_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int j = 0; j < 4; j++) s[j] = s[j] + of(load(x + i + j * LANES));
  for (int j = 0; i < n; i += LANES, j++) {
    const F v = n - i >= LANES ? load(x + i) : load_n(x + i, n - i);
    s[j] = s[j] + of(v);
  }
  return sum((s[0] + s[1]) + (s[2] + s[3]));
}

void rms_norm(const float* x, int32_t n, float eps, const float* w, float* y) {
  const float squares = sum_over(x, n, [](F v) { return v * v; });
  const F r = set1(1.f / sqrtf(squares / float(n) + eps));
  if (w) each(x, w, n, y, [=](F u, F v) { return (u * r) * v; });
  else each(x, n, y, [=](F u) { return u * r; });
}

void layer_norm(const float* x, int32_t n, float eps, const float* w, const float* b, float* y) {
  const F mean = set1(sum_over(x, n, [](F v) { return v; }) / float(n));
  each(x, n, y, [=](F v) { return v - mean; });  // the zeros behind the last ones are not written
  const float squares = sum_over(y, n, [](F v) { return v * v; });
  const F r = set1(1.f / sqrtf(squares / float(n) + eps));
  if (w) each(y, w, n, y, [=](F u, F v) { return (u * r) * v; });
  else each(y, n, y, [=](F u) { return u * r; });
  if (b) add(y, b, n, y);
}

// The largest number of x; which NaN, or none, where there are any, is not said.
inline float largest_of(const float* x, int32_t n) {
  F m = set1(-INFINITY);
  int32_t i = 0;
  for (; i + LANES <= n; i += LANES) m = larger(m, load(x + i));
  float found = largest(m);
  for (; i < n; i++) found = found > x[i] ? found : x[i];
  return found;
}

void softmax(const float* x, int32_t n, float* y) {
  const F top = set1(largest_of(x, n));
  each(x, n, y, [=](F v) { return exp_of(v - top); });
  const F total = set1(sum_over(y, n, [](F v) { return v; }));
  each(y, n, y, [=](F v) { return v / total; });
}

Best argmax(const float* x, int32_t n) {
  F top = set1(-INFINITY), nan = set1(0.f);
  for (int32_t i = 0; i + LANES <= n; i += LANES) {
    const F v = load(x + i);
    top = where_less(top, v, v, top);
    nan = where_nan(v, v, nan);
  }
  float largest_one = largest(top);
  bool any_nan = sum(nan) != 0.f;
  for (int32_t i = n / LANES * LANES; i < n; i++) {
    any_nan |= x[i] != x[i];
    if (x[i] > largest_one) largest_one = x[i];
  }
  int32_t i = 0;
  while (i < n && (any_nan ? x[i] == x[i] : x[i] != largest_one)) i++;
  return {x[i], i};
}

void to_half(const float* x, int64_t n, uint16_t* y) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store_half(y + i, load(x + i));
  if (i < n) {
    alignas(32) uint16_t halves[LANES];
    store_half(halves, load_n(x + i, int(n - i)));
    memcpy(y + i, halves, size_t(n - i) * 2);
  }
}

void to_float(const uint16_t* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(y + i, load_half(x + i));
  if (i < n) {
    alignas(32) uint16_t halves[LANES] = {};
    memcpy(halves, x + i, size_t(n - i) * 2);
    store_n(y + i, load_half(halves), int(n - i));
  }
}

}  // namespace
