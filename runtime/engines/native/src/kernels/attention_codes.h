// Attention over K and V in int8: whole numbers are multiplied and summed, exact in any order, and floats are made of the
// sums of a token (scores) and of the 16 tokens of a block (the mix).
#pragma once

#include "attention.h"
#include "codes.h"

namespace {

// A row's head.
struct Query {
  const float* q;
  float* y;
  int32_t first, last;  // the tokens that it sees
};

// Some of them that are worked on at once, over the blocks of all tokens that any of them sees.
template <int N>
struct Coded {
  Query queries[N];
  Cached cached;
  int32_t dims, head_dim;     // filled up, and as they are
  int32_t begin, end;         // blocks
  const int8_t* codes;        // of q: [N][dims]
  int32_t offsets[N];         // -128 times their sum
  float scales[N];            // of a score
  float cap;
  float* scores;              // [N][stride]; then p; then codes of p times the scales of values, bytes at the same start
  int32_t stride;
  float *steps, *per_one;     // [N][blocks]: of such codes; blocks [N][most_blocks]
  int32_t most_blocks;

  const int8_t* keys(int32_t block) const { return static_cast<const int8_t*>(cached.blocks[block]) + cached.keys; }
  const int8_t* values(int32_t block) const { return static_cast<const int8_t*>(cached.blocks[block]) + cached.values; }
};

inline const float* scales_of(const int8_t* part, int32_t dims) { return reinterpret_cast<const float*>(part + dims * LANES); }

template <int N, int B>
inline void score_codes(const Coded<N>& a, int32_t block, bool fetch) {
  const int8_t *keys[B], *values[B], *next[B];
  I sums[B][N];
  for (int b = 0; b < B; b++) {
    keys[b] = a.keys(block + b), values[b] = a.values(block + b);
    next[b] = a.keys(block + b + B < a.end ? block + b + B : block + b);
    for (int j = 0; j < N; j++) sums[b][j] = no_products(a.offsets[j]);
  }
  for (int32_t d = 0; d < a.dims; d += 4) {
    Factor k[B];
    for (int b = 0; b < B; b++) {
      if (fetch) prefetch(values[b] + d * LANES), prefetch(next[b] + d * LANES);
      k[b] = load_factor(keys[b] + d * LANES);
    }
    for (int j = 0; j < N; j++) {
      const int32_t q = four(a.codes + j * a.dims + d);
      for (int b = 0; b < B; b++) sums[b][j] = add_products(sums[b][j], k[b], q);
    }
  }
  for (int b = 0; b < B; b++) {
    const F scales = load(scales_of(keys[b], a.dims));
    const int32_t from = (block + b) * LANES;
    for (int j = 0; j < N; j++) {
      F v = to_floats(sums[b][j]) * (scales * set1(a.scales[j]));
      if (a.cap > 0) cap_scores(&v, a.cap);
      const Query& q = a.queries[j];
      show(a.scores + j * a.stride + from - a.begin * LANES, v, q.first - from, q.last - from);
    }
  }
}

// p of one query → codes of p times the scales of the values, as `quantize` makes them of each block. Tokens that are not
// seen have a p of 0, and what the scale of nothing is does not count.
void share_codes(const Cached& cached, int32_t begin, int32_t blocks, int32_t dims, float* p, float* steps, float* per_one) {
  for (int32_t b = 0; b < blocks; b++) {
    const int8_t* values = static_cast<const int8_t*>(cached.blocks[begin + b]) + cached.values;
    const F v = load(p + b * LANES), zero = set1(0.f);
    const F share = where_less(zero, v, v * load(scales_of(values, dims)), zero);
    store(p + b * LANES, share);
    const int32_t peak = largest(as_words(absolute(share)));  // in the order of their bits, a NaN last
    memcpy(steps + b, &peak, 4);
  }
  for (int32_t b = 0; b < blocks; b += LANES) {
    const F peak = load(steps + b), count = set1(127.f) / peak, none = set1(0.f), odd = peak - peak;
    const F some = where_less(count, set1(INFINITY), count, none);
    store(per_one + b, where_nan(odd, none, some));
    store(steps + b, where_nan(odd, odd, where_less(count, set1(INFINITY), peak / set1(127.f), none)));
  }
  int8_t* codes = reinterpret_cast<int8_t*>(p);
  for (int32_t b = 0; b < blocks; b++) {
    store_bytes(codes + b * LANES, rounded_words(load(p + b * LANES) * set1(per_one[b])));
  }
}

// D times 16 dims from `dim` on.
template <int N, int D>
inline void mix_codes(const Coded<N>& a, const float (&share)[N], int32_t dim) {
  F y[N][D];
  for (int j = 0; j < N; j++)
    for (int i = 0; i < D; i++) y[j][i] = set1(0.f);
  for (int32_t block = a.begin; block < a.end; block++) {
    const int8_t* values = a.values(block) + dim * 4;
    const int32_t b = block - a.begin;
    for (int i = 0; i < D; i++) {
      I sums[N];
      for (int j = 0; j < N; j++) sums[j] = set1(int32_t{0});
      for (int32_t four_tokens = 0; four_tokens < 4; four_tokens++) {
        const Bytes v = load_bytes(values + four_tokens * 4 * a.dims + i * 64);
        for (int j = 0; j < N; j++) {
          const int8_t* p = reinterpret_cast<const int8_t*>(a.scores + j * a.stride) + b * LANES;
          sums[j] = add_shares(sums[j], v, four(p + four_tokens * 4));
        }
      }
      for (int j = 0; j < N; j++) y[j][i] = y[j][i] + to_floats(sums[j]) * set1(a.steps[j * a.most_blocks + b]);
    }
  }
  for (int j = 0; j < N; j++)
    for (int i = 0; i < D; i++) {
      const int32_t at = dim + i * LANES, left = a.head_dim - at;
      const F v = y[j][i] * set1(share[j]);
      if (left >= LANES) store(a.queries[j].y + at, v);
      else if (left > 0) store_n(a.queries[j].y + at, v, left);
    }
}

template <int N>
void score_all_codes(const Coded<N>& a, bool fetch) {
  constexpr int B = SCORE_BLOCKS * SCORE_BLOCKS;
  int32_t block = a.begin;
  for (; block + B <= a.end; block += B) score_codes<N, B>(a, block, fetch);
  for (; block < a.end; block++) score_codes<N, 1>(a, block, fetch);
}

// As with `hide`: once for each head.
__attribute__((noinline)) void quantize_query(const float* q, int32_t n, int8_t* codes, float* scale, int32_t* offset) {
  quantize_group(q, n, 128, codes, scale, offset);
}

template <int N>
void attend_coded(const Attention& call, const Query* queries, bool fetch) {
  Coded<N> a;
  a.cached = call.cached, a.cap = call.cap;
  a.head_dim = call.head_dim, a.dims = padded(call.head_dim);
  int32_t first = queries[0].first, last = queries[0].last;
  for (int j = 0; j < N; j++) {
    a.queries[j] = queries[j];
    first = queries[j].first < first ? queries[j].first : first;
    last = queries[j].last > last ? queries[j].last : last;
  }
  a.begin = first / LANES, a.end = (last + LANES - 1) / LANES;
  a.stride = (a.end - a.begin) * LANES;
  a.most_blocks = padded(a.end - a.begin);
  a.scores = call.scratch;
  a.steps = a.scores + N * a.stride, a.per_one = a.steps + N * a.most_blocks;
  int8_t* codes = reinterpret_cast<int8_t*>(a.per_one + N * a.most_blocks);
  a.codes = codes;
  for (int j = 0; j < N; j++) {
    float scale;
    quantize_query(queries[j].q, a.head_dim, codes + j * a.dims, &scale, &a.offsets[j]);
    a.scales[j] = scale * call.scale;
  }
  score_all_codes<N>(a, fetch);
  float share[N];
  for (int j = 0; j < N; j++) {
    share[j] = 1.f / weigh(a.scores + j * a.stride, a.stride);
    share_codes(a.cached, a.begin, a.end - a.begin, a.dims, a.scores + j * a.stride, a.steps + j * a.most_blocks,
                a.per_one + j * a.most_blocks);
  }
  int32_t dim = 0;
  for (; dim + MIX_LANES * LANES <= a.dims; dim += MIX_LANES * LANES) mix_codes<N, MIX_LANES>(a, share, dim);
  for (; dim < a.dims; dim += LANES) mix_codes<N, 1>(a, share, dim);
}

inline void attend_coded(const Attention& call, const Query* queries, int32_t count, bool fetch) {
  if (count == 4) attend_coded<at_once(4)>(call, queries, fetch);
  else if (count == 3) attend_coded<at_once(3)>(call, queries, fetch);
  else if (count == 2) attend_coded<at_once(2)>(call, queries, fetch);
  else attend_coded<1>(call, queries, fetch);
}

// Heads of a row, and rows, share what is read.
void attend_codes(const Attention& a) {
  Query queries[HEADS];
  int32_t count = 0, done = 0;
  const int32_t all = a.rows * a.heads;
  for (int32_t m = 0; m < a.rows; m++)
    for (int32_t h = 0; h < a.heads; h++) {
      queries[count++] = {a.q + m * a.q_stride + h * a.head_dim, a.y + m * a.y_stride + h * a.head_dim, a.first[m], a.last[m]};
      const int32_t left = all - done;
      const int32_t wanted = left <= HEADS ? left : left < 2 * HEADS ? (left + 1) / 2 : HEADS;
      if (count < wanted) continue;
      attend_coded(a, queries, count, done == 0);
      done += count, count = 0;
    }
}

void store_key_codes(const float* k, int32_t head_dim, int32_t token, void* keys) {
  int8_t* to = static_cast<int8_t*>(keys) + token * 4;
  const Steps steps = steps_of(k, head_dim);
  memcpy(static_cast<int8_t*>(keys) + padded(head_dim) * LANES + token * 4, &steps.scale, 4);
  alignas(16) int8_t codes[LANES] = {};
  for (int32_t d = 0; d < head_dim; d += LANES) {
    if (steps.per_one != 0.f) store_bytes(codes, codes_at(k, head_dim, d, steps.per_one));
    for (int32_t i = 0; i < LANES; i += 4) memcpy(to + (d + i) * LANES, codes + i, 4);
  }
}

void store_value_codes(const float* v, int32_t head_dim, int32_t token, void* values) {
  const int32_t dims = padded(head_dim);
  int8_t* to = static_cast<int8_t*>(values) + token / 4 * 4 * dims + token % 4;
  const Steps steps = steps_of(v, head_dim);
  memcpy(static_cast<int8_t*>(values) + dims * LANES + token * 4, &steps.scale, 4);
  alignas(16) int8_t codes[LANES] = {};
  for (int32_t d = 0; d < head_dim; d += LANES) {
    if (steps.per_one != 0.f) store_bytes(codes, codes_at(v, head_dim, d, steps.per_one));
    for (int32_t i = 0; i < LANES; i++) to[(d + i) * 4] = codes[i];
  }
}

}  // namespace
