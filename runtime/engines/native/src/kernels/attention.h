// Attention over blocks of 16 cached tokens. Scores: lanes are tokens, so nothing is summed across lanes; the mix: lanes
// are dims, and a token after the other is added. A query's arithmetic depends on its own range of tokens only.
#pragma once

#include <cmath>

#include "functions.h"

namespace {

using namespace edgeloop;

inline F load_cached(const float* p) { return load(p); }
inline F load_cached(const uint16_t* p) { return load_half(p); }
inline F load_cached(const float* p, int n) { return load_n(p, n); }
inline F load_cached(const uint16_t* p, int n) {
  alignas(32) uint16_t halves[LANES] = {};
  memcpy(halves, p, size_t(n) * 2);
  return load_half(halves);
}

template <class T> inline const T* keys_of(const Cached& c, int32_t block) {
  return reinterpret_cast<const T*>(static_cast<const char*>(c.blocks[block]) + c.keys);
}
template <class T> inline const T* values_of(const Cached& c, int32_t block) {
  return reinterpret_cast<const T*>(static_cast<const char*>(c.blocks[block]) + c.values);
}

// The heads of a row that are worked on at once.
struct Queries {
  const float* q;
  float* y;
  int32_t head_dim, first, last;
  Cached cached;
  float scale, cap;
  float* scores;   // [heads][stride], from the first block on
  int32_t stride;
};

// What is done once for a block or for a head is a function of its own: copies of it in each of the functions below would be
// a tenth of the library.
__attribute__((noinline)) void cap_scores(F* scores, float cap) { *scores = set1(cap) * tanh_of(*scores / set1(cap)); }

// The scores of a block's tokens before `first` and from `last` on become minus infinity.
__attribute__((noinline)) void hide(float* scores, int32_t first, int32_t last) {
  for (int32_t i = 0; i < LANES; i++)
    if (i < first || i >= last) scores[i] = -INFINITY;
}
inline void show(float* scores, F v, int32_t first, int32_t last) {
  store(scores, v);
  if (first > 0 || last < LANES) hide(scores, first, last);
}

// Scores of the tokens of B blocks, N heads; those out of the range are minus infinity. `fetch`: nobody has read these
// blocks lately. Then their values, for the mix, and the keys of the blocks behind them are fetched: blocks lie anywhere, so
// no processor guesses them (128 tokens in float32 from memory: 12 µs a layer, 20 without).
template <class T, int N, int B>
inline void score(const Queries& a, int32_t block, bool fetch) {
  const T *keys[B], *values[B], *next[B];
  F s[B][N];
  for (int b = 0; b < B; b++) {
    const int32_t here = block + b, behind = here + B;
    keys[b] = keys_of<T>(a.cached, here), values[b] = values_of<T>(a.cached, here);
    next[b] = keys_of<T>(a.cached, behind * LANES < a.last ? behind : here);
    for (int j = 0; j < N; j++) s[b][j] = set1(0.f);
  }
  for (int32_t d = 0; d < a.head_dim; d++) {
    F k[B];
    for (int b = 0; b < B; b++) {
      if (fetch) prefetch(values[b] + d * LANES), prefetch(next[b] + d * LANES);
      k[b] = load_cached(keys[b] + d * LANES);
    }
    for (int j = 0; j < N; j++) {
      const F q = set1(a.q[j * a.head_dim + d]);
      for (int b = 0; b < B; b++) s[b][j] = s[b][j] + q * k[b];
    }
  }
  for (int b = 0; b < B; b++) {
    const int32_t from = (block + b) * LANES, place = from - a.first / LANES * LANES;
    for (int j = 0; j < N; j++) {
      F v = s[b][j] * set1(a.scale);
      if (a.cap > 0) cap_scores(&v, a.cap);
      show(a.scores + j * a.stride + place, v, a.first - from, a.last - from);
    }
  }
}

// n numbers, whole lanes → e^(x - largest) in place; returns their sum.
__attribute__((noinline)) float weigh(float* x, int32_t n) {
  F top = load(x), total = set1(0.f);
  for (int32_t i = LANES; i < n; i += LANES) top = larger(top, load(x + i));
  top = set1(largest(top));
  for (int32_t i = 0; i < n; i += LANES) {
    const F p = exp_of(load(x + i) - top);
    store(x + i, p);
    total = total + p;
  }
  return sum(total);
}

// D times 16 dims from `dim` on, N heads: the sum of p * v over the tokens. `n`: how many dims where they are not all.
template <class T, int N, int D>
inline void mix(const Queries& a, const float (&share)[N], int32_t dim, int n = D * LANES) {
  F s[N][D];
  for (int j = 0; j < N; j++)
    for (int i = 0; i < D; i++) s[j][i] = set1(0.f);
  const int32_t base = a.first / LANES * LANES;
  for (int32_t t = a.first; t < a.last;) {
    const T* values = values_of<T>(a.cached, t / LANES) + dim;
    const int32_t end = t / LANES * LANES + LANES < a.last ? t / LANES * LANES + LANES : a.last;
    for (; t < end; t++) {
      const T* row = values + t % LANES * a.head_dim;
      F v[D];
      for (int i = 0; i < D; i++) v[i] = n == D * LANES ? load_cached(row + i * LANES) : load_cached(row, n);
      for (int j = 0; j < N; j++) {
        const F p = set1(a.scores[j * a.stride + t - base]);
        for (int i = 0; i < D; i++) s[j][i] = s[j][i] + p * v[i];
      }
    }
  }
  for (int j = 0; j < N; j++)
    for (int i = 0; i < D; i++) {
      const F y = s[j][i] * set1(share[j]);
      float* to = a.y + j * a.head_dim + dim + i * LANES;
      if (n == D * LANES) store(to, y);
      else store_n(to, y, n);
    }
}

template <class T, int N>
void score_all(const Queries& a, int32_t first, int32_t last, bool fetch) {
  int32_t block = first;
  for (; block + SCORE_BLOCKS <= last; block += SCORE_BLOCKS) score<T, N, SCORE_BLOCKS>(a, block, fetch);
  for (; block < last; block++) score<T, N, 1>(a, block, fetch);
}

template <class T, int N>
void attend_heads(const Queries& a, bool fetch) {
  const int32_t first = a.first / LANES, last = (a.last + LANES - 1) / LANES;
  score_all<T, N>(a, first, last, fetch);
  float share[N];
  for (int j = 0; j < N; j++) share[j] = 1.f / weigh(a.scores + j * a.stride, (last - first) * LANES);
  int32_t dim = 0;
  for (; dim + MIX_LANES * LANES <= a.head_dim; dim += MIX_LANES * LANES) mix<T, N, MIX_LANES>(a, share, dim);
  for (; dim + LANES <= a.head_dim; dim += LANES) mix<T, N, 1>(a, share, dim);
  if (dim < a.head_dim) mix<T, N, 1>(a, share, dim, a.head_dim - dim);
}

// Of more than HEADS there is no copy of a function.
constexpr int at_once(int heads) { return heads < HEADS ? heads : HEADS; }

template <class T>
inline void attend_some(const Queries& a, int32_t heads, bool fetch) {
  if (heads == 4) attend_heads<T, at_once(4)>(a, fetch);
  else if (heads == 3) attend_heads<T, at_once(3)>(a, fetch);
  else if (heads == 2) attend_heads<T, at_once(2)>(a, fetch);
  else attend_heads<T, 1>(a, fetch);
}

template <class T>
void attend(const Attention& a) {
  for (int32_t m = 0; m < a.rows; m++) {
    Queries part{a.q + m * a.q_stride, a.y + m * a.y_stride, a.head_dim, a.first[m], a.last[m], a.cached, a.scale, a.cap,
                 a.scratch, padded(a.last[m] - a.first[m]) + LANES};
    for (int32_t left = a.heads, n; left > 0; left -= n, part.q += n * a.head_dim, part.y += n * a.head_dim) {
      n = left < HEADS ? left : HEADS;
      attend_some<T>(part, n, m == 0 && left == a.heads);
    }
  }
}

void store_key_floats(const float* k, int32_t head_dim, int32_t column, void* block) {
  float* to = static_cast<float*>(block) + column;
  for (int32_t d = 0; d < head_dim; d++) to[d * LANES] = k[d];
}

void store_key_halves(const float* k, int32_t head_dim, int32_t column, void* block) {
  uint16_t* to = static_cast<uint16_t*>(block) + column;
  alignas(32) uint16_t halves[LANES];
  for (int32_t d = 0; d < head_dim; d += LANES) {
    const int32_t n = head_dim - d < LANES ? head_dim - d : LANES;
    store_half(halves, load_n(k + d, n));
    for (int32_t i = 0; i < n; i++) to[(d + i) * LANES] = halves[i];
  }
}

void store_value_floats(const float* v, int32_t head_dim, int32_t token, void* values) {
  memcpy(static_cast<float*>(values) + token * head_dim, v, size_t(head_dim) * 4);
}

}  // namespace
