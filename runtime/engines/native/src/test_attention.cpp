// Attention over blocks: against doubles, table against table, and a row and a head alone against all at once.
#include <algorithm>
#include <cmath>

#include "test.h"

namespace edgeloop::test {

namespace {

constexpr CacheKind KINDS[] = {CacheKind::float32, CacheKind::float16, CacheKind::int8, CacheKind::int4};

// Blocks of 16 tokens for `kv_heads` heads, each block somewhere else; unwritten tokens hold NaN, which must not matter.
struct TestCache {
  TestCache(Random& random, CacheKind kind, int tokens, int kv_heads, int head_dim, float size) : kind(kind), kv_heads(kv_heads), head_dim(head_dim) {
    const Kernels& portable = *kernels_named("portable");
    part = cache_part(kind, head_dim), block_bytes = 2 * part * size_t(kv_heads);
    k = numbers(random, tokens * kv_heads * head_dim, Sort::plain), v = numbers(random, tokens * kv_heads * head_dim, Sort::plain);
    for (float& x : k) x *= size;
    for (int b = 0; b * 16 < tokens; b++) memory.emplace_back(block_bytes, 0xff);
    for (int t = 0; t < tokens; t++)
      for (int h = 0; h < kv_heads; h++) {
        uint8_t* block = memory[size_t(t / 16)].data();
        const float *key = &k[size_t((t * kv_heads + h) * head_dim)], *value = &v[size_t((t * kv_heads + h) * head_dim)];
        portable.store_key[int(kind)](key, head_dim, t % 16, block + keys(h));
        portable.store_value[int(kind)](value, head_dim, t % 16, block + values(h));
      }
    for (auto& block : memory) blocks.push_back(block.data());
  }
  size_t keys(int head) const { return 2 * part * size_t(head); }
  size_t values(int head) const { return keys(head) + part; }
  double key(int t, int h, int d) const { return as_kept(k, t, h, d); }
  double value(int t, int h, int d) const { return as_kept(v, t, h, d); }
  double as_kept(const std::vector<float>& all, int t, int h, int d) const {
    const float* x = &all[size_t((t * kv_heads + h) * head_dim)];
    if (kind == CacheKind::int8) return double(code(x, d)) * double(scale(x));
    if (kind == CacheKind::int4) return double(nibble(x, d)) * double(step(x, d));
    return kind == CacheKind::float32 ? x[d] : float_from_half(half_from_float(x[d]));
  }
  // What becomes of number d in int4: 16 of them have a step, which is a float16.
  float step(const float* x, int d) const {
    float most = 0;
    for (int i = d / 16 * 16; i < std::min(d / 16 * 16 + 16, head_dim); i++) most = std::max(most, std::fabs(x[i]));
    return float_from_half(half_from_float(most / 7.f));
  }
  int nibble(const float* x, int d) const {
    const float one = step(x, d);
    return one > 0 ? int(std::nearbyint(std::min(7.f, std::max(-7.f, x[d] * (1.f / one))))) : 0;
  }
  // What becomes of head_dim numbers in int8.
  float peak(const float* x) const {
    float most = 0;
    for (int d = 0; d < head_dim; d++) most = std::max(most, std::fabs(x[d]));
    return most;
  }
  float scale(const float* x) const { return peak(x) / 127.f; }
  int code(const float* x, int d) const { return peak(x) > 0 ? int(std::nearbyint(x[d] * (127.f / peak(x)))) : 0; }

  CacheKind kind;
  int kv_heads, head_dim;
  size_t part, block_bytes;
  std::vector<float> k, v;
  std::vector<std::vector<uint8_t>> memory;
  std::vector<const void*> blocks;
};

struct Call {
  int rows, heads;  // heads of a KV head
  float scale, cap;
  std::vector<float> q;
  std::vector<int32_t> first, last;
};

std::vector<float> attended(const Kernels& kernels, const TestCache& cache, const Call& call, int kv_head, int row, int rows, int head, int heads) {
  const int width = call.heads * cache.head_dim;
  const auto from = call.first.begin() + row, to = call.last.begin() + row;
  const int most = *std::max_element(to, to + rows) - *std::min_element(from, from + rows);
  std::vector<float> y(size_t(rows * heads * cache.head_dim), 0.f), scratch(attend_scratch(most, cache.head_dim));
  Attention a{};
  a.q = call.q.data() + row * width + head * cache.head_dim, a.q_stride = width;
  a.y = y.data(), a.y_stride = heads * cache.head_dim;
  a.rows = rows, a.heads = heads, a.head_dim = cache.head_dim;
  a.first = call.first.data() + row, a.last = call.last.data() + row;
  a.cached = {cache.blocks.data(), cache.keys(kv_head), cache.values(kv_head)};
  a.scale = call.scale, a.cap = call.cap, a.scratch = scratch.data();
  kernels.attend[int(cache.kind)](a);
  return y;
}

double worst_error(const TestCache& cache, const Call& call, int kv_head, const std::vector<float>& y) {
  double worst = 0;
  for (int m = 0; m < call.rows; m++)
    for (int h = 0; h < call.heads; h++) {
      const float* q = &call.q[size_t((m * call.heads + h) * cache.head_dim)];
      std::vector<double> p;
      double top = -INFINITY, total = 0;
      for (int t = call.first[size_t(m)]; t < call.last[size_t(m)]; t++) {
        double s = 0;
        for (int d = 0; d < cache.head_dim; d++) s += q[d] * cache.key(t, kv_head, d);
        s *= call.scale;
        if (call.cap > 0) s = call.cap * std::tanh(s / call.cap);
        p.push_back(s);
        top = std::max(top, s);
      }
      for (double& s : p) total += s = std::exp(s - top);
      for (int d = 0; d < cache.head_dim; d++) {
        double wanted = 0;
        for (size_t i = 0; i < p.size(); i++) wanted += p[i] / total * cache.value(call.first[size_t(m)] + int(i), kv_head, d);
        worst = std::max(worst, std::fabs(wanted - double(y[size_t((m * call.heads + h) * cache.head_dim + d)])));
      }
    }
  return worst;
}

// Scores of the tokens from ``first`` on become e^(score - the largest); 1 / their sum is returned, which is made in 16 lanes.
float shares(std::vector<float>& p, float cap, int first) {
  const Kernels& portable = *kernels_named("portable");
  if (cap > 0) portable.softcap(p.data(), int(p.size()), cap, p.data());
  const float top = *std::max_element(p.begin(), p.end());
  for (float& s : p) s = s - top;
  portable.act[int(Function::exp)](p.data(), int(p.size()), p.data());
  float lanes[16] = {};
  for (size_t i = 0; i < p.size(); i++) lanes[(size_t(first) + i) % 16] += p[i];
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
  return 1.f / lanes[0];
}

// The same in float32, operation by operation as docs/native.md has them.
std::vector<float> defined(const TestCache& cache, const Call& call, int kv_head) {
  std::vector<float> y;
  for (int m = 0; m < call.rows; m++)
    for (int h = 0; h < call.heads; h++) {
      const float* q = &call.q[size_t((m * call.heads + h) * cache.head_dim)];
      const int first = call.first[size_t(m)], last = call.last[size_t(m)];
      std::vector<float> p;
      for (int t = first; t < last; t++) {
        float s = 0;
        for (int d = 0; d < cache.head_dim; d++) s = s + q[d] * float(cache.key(t, kv_head, d));
        p.push_back(s * call.scale);
      }
      const float share = shares(p, call.cap, first);
      for (int d = 0; d < cache.head_dim; d++) {
        float s = 0;
        for (size_t i = 0; i < p.size(); i++) s = s + p[i] * float(cache.value(first + int(i), kv_head, d));
        y.push_back(s * share);
      }
    }
  return y;
}

// The same of int8: whole numbers, and floats made of the sums.
std::vector<float> defined_in_codes(const TestCache& cache, const Call& call, int kv_head) {
  const int dims = cache.head_dim;
  const auto row = [&](const std::vector<float>& all, int t) { return &all[size_t((t * cache.kv_heads + kv_head) * dims)]; };
  std::vector<float> y;
  for (int m = 0; m < call.rows; m++)
    for (int h = 0; h < call.heads; h++) {
      const float* q = &call.q[size_t((m * call.heads + h) * dims)];
      const int first = call.first[size_t(m)], last = call.last[size_t(m)];
      std::vector<float> p;
      for (int t = first; t < last; t++) {
        const float* k = row(cache.k, t);
        int s = 0;
        for (int d = 0; d < dims; d++) s += cache.code(q, d) * cache.code(k, d);
        p.push_back(float(s) * (cache.scale(k) * (cache.scale(q) * call.scale)));
      }
      const float share = shares(p, call.cap, first);
      std::vector<float> mixed(size_t(dims), 0.f);
      for (int begin = first; begin < last; begin = begin / 16 * 16 + 16) {  // tokens of a block
        const int end = std::min(begin / 16 * 16 + 16, last);
        float most = 0;
        for (int t = begin; t < end; t++) most = std::max(most, p[size_t(t - first)] *= cache.scale(row(cache.v, t)));
        for (int d = 0; d < dims && most > 0; d++) {
          int s = 0;
          for (int t = begin; t < end; t++)
            s += int(std::nearbyint(p[size_t(t - first)] * (127.f / most))) * cache.code(row(cache.v, t), d);
          mixed[size_t(d)] += float(s) * (most / 127.f);
        }
      }
      for (float s : mixed) y.push_back(s * share);
    }
  return y;
}

// The same of int4: codes, summed for 16 dims at a time, and shares with the scales of 16 numbers of a token.
std::vector<float> defined_in_nibbles(const TestCache& cache, const Call& call, int kv_head) {
  const int dims = cache.head_dim;
  const auto row = [&](const std::vector<float>& all, int t) { return &all[size_t((t * cache.kv_heads + kv_head) * dims)]; };
  std::vector<float> y;
  for (int m = 0; m < call.rows; m++)
    for (int h = 0; h < call.heads; h++) {
      const float* q = &call.q[size_t((m * call.heads + h) * dims)];
      const int first = call.first[size_t(m)], last = call.last[size_t(m)];
      std::vector<float> p;
      for (int t = first; t < last; t++) {
        const float* k = row(cache.k, t);
        float s = 0;
        for (int d = 0; d < dims; d += 16) {
          float part = 0;
          for (int i = d; i < std::min(d + 16, dims); i++) part = part + q[i] * float(cache.nibble(k, i));
          s = s + part * cache.step(k, d);
        }
        p.push_back(s * call.scale);
      }
      const float share = shares(p, call.cap, first);
      for (int d = 0; d < dims; d++) {
        float s = 0;
        for (int t = first; t < last; t++) {
          const float* v = row(cache.v, t);
          s = s + (p[size_t(t - first)] * cache.step(v, d)) * float(cache.nibble(v, d));
        }
        y.push_back(s * share);
      }
    }
  return y;
}

void one(Random& random, int head_dim, int heads, int tokens, CacheKind kind, bool windowed, float cap) {
  const int kv_heads = 1 + random.below(3), kv_head = random.below(kv_heads);
  const TestCache cache(random, kind, tokens, kv_heads, head_dim, 3);
  Call call{1 + random.below(9), heads, 1 / std::sqrt(float(head_dim)), cap, {}, {}, {}};
  call.q = numbers(random, call.rows * heads * head_dim, Sort::plain);
  for (float& x : call.q) x *= 3;
  for (int m = 0; m < call.rows; m++) {
    call.last.push_back(1 + random.below(tokens));
    call.first.push_back(windowed ? random.below(call.last.back()) : 0);
  }
  const std::string what = "attention over " + std::to_string(tokens) + " tokens, " + std::to_string(heads) + " heads of " +
                           std::to_string(head_dim) + ", kind " + std::to_string(int(kind));
  const std::vector<float> wanted = attended(*kernels_named("portable"), cache, call, kv_head, 0, call.rows, 0, heads);
  const double error = worst_error(cache, call, kv_head, wanted);
  const bool codes = kind == CacheKind::int8;
  expect(error < (codes ? 0.08 : 3e-6), what + " is off by " + std::to_string(error * 1e6) + "e-6");
  const std::vector<float> bits = codes                               ? defined_in_codes(cache, call, kv_head)
                                  : kind == CacheKind::int4 ? defined_in_nibbles(cache, call, kv_head)
                                                              : defined(cache, call, kv_head);
  expect(same(wanted, bits), what + " has other bits than its definition");
  for (const Kernels* kernels : tables()) {
    const std::string named = std::string(kernels->name) + " " + what;
    expect(same(attended(*kernels, cache, call, kv_head, 0, call.rows, 0, heads), wanted), named);
    const int row = random.below(call.rows), head = random.below(heads);
    const size_t from = size_t((row * heads + head) * head_dim);
    expect(same(attended(*kernels, cache, call, kv_head, row, 1, head, 1), {&wanted[from], &wanted[from] + head_dim}), named + ", a row and head alone");
  }
}

// What is not finite in a row stays in the row.
void holes(Random& random, CacheKind kind) {
  const TestCache cache(random, kind, 40, 1, 32, 1);
  Call call{3, 2, 0.2f, 0, numbers(random, 3 * 2 * 32, Sort::plain), {0, 0, 0}, {40, 40, 40}};
  const std::vector<float> whole = attended(*kernels_named("portable"), cache, call, 0, 0, 3, 0, 2);
  for (float odd : {NAN, INFINITY, -INFINITY}) {
    call.q[64 + 5] = odd;
    for (const Kernels* kernels : tables()) {
      const std::vector<float> y = attended(*kernels, cache, call, 0, 0, 3, 0, 2);
      bool others = true, own = true;
      for (size_t i = 0; i < y.size(); i++) (i >= 64 && i < 96 ? own : others) &= i >= 64 && i < 96 ? std::isnan(y[i]) : y[i] == whole[i];
      expect(others && own, std::string(kernels->name) + " attention of a row that is not finite");
    }
  }
}

}  // namespace

void test_attention() {
  Random random(6);
  for (int head_dim : {8, 16, 20, 64, 80, 128})
    for (int heads : {1, 2, 3, 4, 5, 8})
      for (int tokens : {1, 15, 16, 17, 40, 130})
        for (CacheKind kind : KINDS) one(random, head_dim, heads, tokens, kind, random.below(2) == 0, random.below(3) ? 0.f : 10.f);
  for (CacheKind kind : KINDS) {
    one(random, 64, 3, 700, kind, false, 0);
    holes(random, kind);
  }
}

}  // namespace edgeloop::test
