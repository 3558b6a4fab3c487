// Every kernel of every table against the portable one, bit by bit, for every sort of numbers and lengths around 16.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "test.h"

namespace edgeloop::test {

namespace {

constexpr int LENGTHS[] = {1, 2, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 128, 200, 960};

// The same call with both tables, on outputs that began alike; what a call must not write stays alike too.
template <class Call>
void alike(const Kernels& kernels, const std::string& what, const std::vector<float>& before, Call call) {
  std::vector<float> wanted = before, found = before;
  call(*kernels_named("portable"), wanted.data());
  call(kernels, found.data());
  expect(same(wanted, found), std::string(kernels.name) + " " + what);
}

void vectors(const Kernels& kernels, int n, Sort sort, Random& random) {
  const std::vector<float> a = numbers(random, n, sort), b = numbers(random, n, sort), w = numbers(random, n, Sort::plain);
  const std::string of = " of " + std::to_string(n) + ", sort " + std::to_string(int(sort));
  const float *pa = a.data(), *pb = b.data(), *pw = w.data();
  for (int f = 0; f < FUNCTION_COUNT; f++) {
    alike(kernels, "act " + std::to_string(f) + of, w, [&](const Kernels& k, float* y) { k.act[f](pa, n, y); });
    alike(kernels, "act in place " + std::to_string(f) + of, a, [&](const Kernels& k, float* y) { k.act[f](y, n, y); });
  }
  alike(kernels, "add" + of, w, [&](const Kernels& k, float* y) { k.add(pa, pb, n, y); });
  alike(kernels, "add in place" + of, a, [&](const Kernels& k, float* y) { k.add(y, pb, n, y); });
  alike(kernels, "mul" + of, w, [&](const Kernels& k, float* y) { k.mul(pa, pb, n, y); });
  alike(kernels, "scale" + of, w, [&](const Kernels& k, float* y) { k.scale(pa, n, 1.3f, nullptr, 0.2f, y); });
  alike(kernels, "scale by a vector" + of, w, [&](const Kernels& k, float* y) { k.scale(pa, n, 1.3f, pw, -0.f, y); });
  alike(kernels, "add_scaled" + of, b, [&](const Kernels& k, float* y) { k.add_scaled(pa, n, 0.7f, y); });
  alike(kernels, "blend" + of, w, [&](const Kernels& k, float* y) { k.blend(pa, pb, n, 0.3f, y); });
  alike(kernels, "softcap" + of, w, [&](const Kernels& k, float* y) { k.softcap(pa, n, 30.f, y); });
  alike(kernels, "softmax" + of, w, [&](const Kernels& k, float* y) { k.softmax(pa, n, y); });
  alike(kernels, "rms_norm" + of, w, [&](const Kernels& k, float* y) { k.rms_norm(pa, n, 1e-6f, pw, y); });
  alike(kernels, "rms_norm without a weight" + of, a, [&](const Kernels& k, float* y) { k.rms_norm(y, n, 1e-6f, nullptr, y); });
  alike(kernels, "layer_norm" + of, w, [&](const Kernels& k, float* y) { k.layer_norm(pa, n, 1e-6f, pw, pb, y); });
  alike(kernels, "layer_norm without a weight" + of, a, [&](const Kernels& k, float* y) { k.layer_norm(y, n, 1e-6f, nullptr, nullptr, y); });
  for (int dims : {n / 2 * 2, n / 4 * 2, 0}) {
    alike(kernels, "rotate_halves" + of, w, [&](const Kernels& k, float* y) { k.rotate_halves(pa, n, dims, pb, pw, y); });
    alike(kernels, "rotate_halves in place" + of, a, [&](const Kernels& k, float* y) { k.rotate_halves(y, n, dims, pb, pw, y); });
    alike(kernels, "rotate_pairs" + of, w, [&](const Kernels& k, float* y) { k.rotate_pairs(pa, n, dims, pb, pw, y); });
    alike(kernels, "rotate_pairs in place" + of, a, [&](const Kernels& k, float* y) { k.rotate_pairs(y, n, dims, pb, pw, y); });
  }
  alike(kernels, "argmax" + of, {0, 0}, [&](const Kernels& k, float* y) {
    const Best best = k.argmax(pa, n);
    y[0] = best.value, y[1] = float(best.index);
  });
}

// Where a function goes over to another formula, and the floats on both sides.
void borders(const Kernels& kernels) {
  std::vector<float> x;
  for (float at : {0.625f, 1.f, 1.41421354f, 5.65685415f, 88.7228394f, 89.f, 103.972076f, 104.f})
    for (float v : {std::nextafter(at, 0.f), at, std::nextafter(at, 200.f)}) x.push_back(v), x.push_back(-v);
  const int n = int(x.size());
  for (int f = 0; f < FUNCTION_COUNT; f++)
    alike(kernels, "act at a border " + std::to_string(f), x, [&](const Kernels& k, float* y) { k.act[f](y, n, y); });
}

template <class T>
bool equal(const std::vector<T>& a, const std::vector<T>& b) {
  return a == b;
}

void whole_numbers(const Kernels& kernels, int n, Sort sort, Random& random) {
  const Kernels& portable = *kernels_named("portable");
  const std::vector<float> x = numbers(random, n, sort);
  const std::string of = std::string(kernels.name) + " quantize of " + std::to_string(n) + ", sort " + std::to_string(int(sort));
  for (int group : {16, 32, 128, 1024})
    for (int zero : {8, 128}) {
      std::vector<int8_t> codes[2];
      std::vector<float> scales[2];
      std::vector<int32_t> sums[2];
      for (int i = 0; i < 2; i++) {
        codes[i].assign(size_t(padded(n)), 7), scales[i].assign(size_t(group_count(n, group)), 7), sums[i].assign(scales[i].size(), 7);
        (i ? kernels : portable).quantize(x.data(), n, group, zero, codes[i].data(), scales[i].data(), sums[i].data());
      }
      expect(equal(codes[0], codes[1]) && same(scales[0], scales[1]) && equal(sums[0], sums[1]), of);
    }
  std::vector<uint16_t> halves[2];
  std::vector<float> keys[2];
  for (int i = 0; i < 2; i++) {
    const Kernels& k = i ? kernels : portable;
    halves[i].assign(size_t(n) * 18, 0);
    k.to_half(x.data(), n, halves[i].data());
    k.store_key[1](x.data(), n, 5, halves[i].data() + n);
    k.store_value[1](x.data(), n, 1, halves[i].data() + n * 16);
    keys[i].assign(size_t(n) * 18, 0.f);
    k.store_key[0](x.data(), n, 11, keys[i].data());
    k.store_value[0](x.data(), n, 0, keys[i].data() + n * 16);
    k.to_float(halves[i].data(), n, keys[i].data() + n * 17);
  }
  expect(equal(halves[0], halves[1]), std::string(kernels.name) + " halves of " + std::to_string(n) + ", sort " + std::to_string(int(sort)));
  expect(same(keys[0], keys[1]), std::string(kernels.name) + " keys of " + std::to_string(n) + ", sort " + std::to_string(int(sort)));
  bool placed = true;
  for (int d = 0; d < n; d++) {
    const uint16_t half = half_from_float(x[size_t(d)]);
    placed &= halves[1][size_t(d)] == half && halves[1][size_t(n + d * 16 + 5)] == half && halves[1][size_t(n * 17 + d)] == half;
    placed &= same({x[size_t(d)], x[size_t(d)]}, {keys[1][size_t(d * 16 + 11)], keys[1][size_t(n * 16 + d)]});
  }
  expect(placed, std::string(kernels.name) + " keys and values are not where a block has them");
}

// K and V of a token in int8: the codes and the scale of `quantize`, where a block has them; other tokens are left alone.
void codes_of_tokens(const Kernels& kernels, int n, Sort sort, Random& random) {
  const std::vector<float> x = numbers(random, n, sort);
  const size_t part = cache_part(CacheKind::int8, n), dims = size_t(padded(n));
  const size_t token = size_t(random.below(16));
  std::vector<int8_t> wanted(dims), keys(part, 99), values(part, 99);
  float scale, key_scale, value_scale;
  int32_t sum;
  kernels_named("portable")->quantize(x.data(), n, n, 128, wanted.data(), &scale, &sum);
  kernels.store_key[2](x.data(), n, int32_t(token), keys.data());
  kernels.store_value[2](x.data(), n, int32_t(token), values.data());
  memcpy(&key_scale, keys.data() + dims * 16 + token * 4, 4);
  memcpy(&value_scale, values.data() + dims * 16 + token * 4, 4);
  bool holds = same({key_scale, value_scale}, {scale, scale});
  for (size_t t = 0; t < 16; t++)
    for (size_t d = 0; d < dims; d++) {
      const int8_t code = t == token ? wanted[d] : int8_t(99);
      holds &= keys[(d / 4 * 16 + t) * 4 + d % 4] == code && values[(t / 4 * dims + d) * 4 + t % 4] == code;
    }
  expect(holds, std::string(kernels.name) + " int8 keys and values of " + std::to_string(n) + ", sort " + std::to_string(int(sort)));
}

// K and V of a token in int4: where a block has the codes and the scales, from every table; other tokens are left alone.
void nibbles_of_tokens(const Kernels& kernels, int n, Sort sort, Random& random) {
  const std::vector<float> x = numbers(random, n, sort);
  const size_t part = cache_part(CacheKind::int4, n), dims = size_t(round_up(n, 32)), token = size_t(random.below(16));
  std::vector<uint8_t> keys(part, 0x99), values(part, 0x99), key_codes(dims, 8), value_codes(dims, 8);
  kernels.store_key[3](x.data(), n, int32_t(token), keys.data());
  kernels.store_value[3](x.data(), n, int32_t(token), values.data());
  bool holds = true;
  for (size_t d = 0; d < dims; d += 16) {
    float most = 0;
    bool odd = false;
    for (size_t i = d; i < std::min(d + 16, size_t(n)); i++) {
      odd |= !std::isfinite(x[i]);
      most = std::max(most, std::fabs(x[i]));
    }
    uint16_t half = odd ? 0x7e00 : half_from_float(most / 7.f);
    if (half >= 0x7c00) half = 0x7e00, odd = true;
    const float step = float_from_half(half);
    for (size_t i = d; i < std::min(d + 16, size_t(n)); i++)
      if (!odd && step > 0) key_codes[i] = uint8_t(8 + int(std::nearbyint(std::min(7.f, std::max(-7.f, x[i] * (1.f / step))))));
    for (const auto& side : {keys, values})
      for (size_t t = 0; t < 16; t++) {
        uint16_t found;
        memcpy(&found, &side[dims * 8 + (d + t) * 2], 2);
        holds &= found == (t == token ? half : 0x9999);
      }
  }
  value_codes = key_codes;
  for (size_t t = 0; t < 16; t++)
    for (size_t d = 0; d < dims; d++) {
      const uint8_t key = keys[(d / 8 * 16 + t) * 4 + d % 8 / 2], value = values[(d / 32 * 16 + t) * 16 + d % 16];
      holds &= (d % 2 ? key >> 4 : key & 15) == (t == token ? key_codes[d] : 9);
      holds &= (d % 32 / 16 ? value >> 4 : value & 15) == (t == token ? value_codes[d] : 9);
    }
  expect(holds, std::string(kernels.name) + " int4 keys and values of " + std::to_string(n) + ", sort " + std::to_string(int(sort)));
}

// All halves, of which some are NaN that signal.
void every_half(const Kernels& kernels) {
  std::vector<uint16_t> halves(0x10000), back(0x10000);
  for (size_t h = 0; h < halves.size(); h++) halves[h] = uint16_t(h);
  alike(kernels, "to_float of every half", std::vector<float>(0x10000), [&](const Kernels& k, float* y) { k.to_float(halves.data(), 0x10000, y); });
  std::vector<float> floats(0x10000);
  kernels.to_float(halves.data(), 0x10000, floats.data());
  kernels.to_half(floats.data(), 0x10000, back.data());
  for (size_t h = 0; h < halves.size(); h++)
    expect(back[h] == h || ((h & 0x7c00) == 0x7c00 && (back[h] | 0x200) == (h | 0x200)), std::string(kernels.name) + " a half does not come back");
}

void products(const Kernels& kernels, Random& random) {
  for (Kind kind : {Kind::float32, Kind::float16, Kind::int8, Kind::int4})
    for (Sort sort : SORTS) {
      const int rows = 1 + random.below(20), columns = 1 + random.below(300), n = 1 + random.below(70);
      const TestMatrix w(random, kind, n, columns, 16 << random.below(4));
      const std::vector<float> x = numbers(random, rows * columns, sort), before = numbers(random, rows * n, Sort::plain);
      const Output out{nullptr, n, nullptr, true};
      auto to = [&](float* y) {
        Output o = out;
        o.y = y;
        return o;
      };
      alike(kernels, "product_floats, sort " + std::to_string(int(sort)), before,
            [&](const Kernels& k, float* y) { k.product_floats(w.matrix, x.data(), columns, rows, 0, tiles_of(w.matrix), to(y)); });
      if (kind == Kind::float32 || kind == Kind::float16) continue;
      alike(kernels, "product_codes, sort " + std::to_string(int(sort)), before, [&](const Kernels& k, float* y) {
        const size_t groups = size_t(groups_of(w.matrix));
        std::vector<int8_t> codes(size_t(rows * padded(columns)));
        std::vector<float> scales(size_t(rows) * groups);
        std::vector<int32_t> sums(size_t(rows) * groups);
        for (int m = 0; m < rows; m++)
          k.quantize(x.data() + m * columns, columns, w.matrix.group, zero_code(kind), codes.data() + m * padded(columns),
                     scales.data() + size_t(m) * groups, sums.data() + size_t(m) * groups);
        k.product_codes(w.matrix, {codes.data(), scales.data(), sums.data()}, rows, 0, tiles_of(w.matrix), to(y));
      });
    }
}

void set_kernels(const char* name) {  // empty: none
#if defined(_WIN32)
  _putenv_s("EDGELOOP_KERNELS", name);
#else
  setenv("EDGELOOP_KERNELS", name, 1);
#endif
}

// A name that is forced, one that does not exist, none.
void choice() {
  expect(kernels_named("neon9") == nullptr, "a table of a name that there is not");
  set_kernels("");
  expect(choose_kernels() == tables().back(), "the best table is not chosen");
  for (const Kernels* kernels : tables()) {
    set_kernels(kernels->name);
    expect(choose_kernels() == kernels, "EDGELOOP_KERNELS does not choose");
  }
  set_kernels("neon9");
  expect(choose_kernels() == nullptr, "EDGELOOP_KERNELS chooses what there is not");
  set_kernels("");
}

}  // namespace

void test_tables() {
  Random random(5);
  choice();
  for (const Kernels* kernels : tables()) {
    for (Sort sort : SORTS)
      for (int n : LENGTHS) {
        vectors(*kernels, n, sort, random);
        whole_numbers(*kernels, n, sort, random);
        codes_of_tokens(*kernels, n, sort, random);
        nibbles_of_tokens(*kernels, n, sort, random);
      }
    borders(*kernels);
    every_half(*kernels);
    for (int i = 0; i < 30; i++) products(*kernels, random);
  }
}

}  // namespace edgeloop::test
