// The tests of the kernels: all, or those named. Exit status 0: all hold.
#include "test.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/half.h"

namespace edgeloop::test {

namespace {
int failed = 0;
}

void expect(bool holds, const std::string& what) {
  if (!holds && ++failed <= 40) printf("FAILED %s\n", what.c_str());
}

int failures() { return failed; }

uint32_t Random::bits() {
  state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
  return uint32_t(state_ >> 16);
}

std::vector<float> numbers(Random& random, int n, Sort sort) {
  std::vector<float> x(size_t(n), 0.f);
  for (float& v : x) {
    const float plain = random.uniform() * 2 - 1;
    switch (sort) {
      case Sort::plain: v = plain; break;
      case Sort::wide: v = ldexpf(plain, random.below(80) - 40); break;
      case Sort::huge: v = ldexpf(plain, 127 - random.below(8)) * 1.9f; break;
      case Sort::tiny: v = ldexpf(plain, -126 - random.below(24)); break;
      case Sort::zeros: v = plain < 0 ? -0.f : 0.f; break;
      case Sort::holes: {
        const float odd[] = {NAN, -NAN, INFINITY, -INFINITY};
        v = random.below(9) ? plain : odd[random.below(4)];
        break;
      }
      case Sort::spiked: v = random.below(16) ? plain * 1e-3f : plain * 50; break;
    }
  }
  return x;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); i++)
    if (memcmp(&a[i], &b[i], 4) != 0 && !(a[i] != a[i] && b[i] != b[i])) return false;
  return true;
}

float float_from_half(uint16_t half) { return float_of_half(half); }
uint16_t half_from_float(float x) { return half_of(x); }

namespace {

uint8_t* aligned(std::vector<uint8_t>& bytes, size_t n, uint8_t fill) {
  bytes.assign(n + 64, fill);
  const size_t past = reinterpret_cast<uintptr_t>(bytes.data()) % 64;
  return bytes.data() + (past ? 64 - past : 0);
}

}  // namespace

TestMatrix::TestMatrix(Random& random, Kind kind, int rows, int columns, int group) : matrix{nullptr, nullptr, rows, columns, group, kind} {
  const size_t numbers_of = size_t(rows) * size_t(columns), tiles = size_t(tiles_of(matrix)), groups = size_t(groups_of(matrix));
  const bool coded = kind == Kind::int8 || kind == Kind::int4;
  uint8_t* data = aligned(tiles_, tiles * tile_bytes(matrix), kind == Kind::int4 ? 0x88 : kind == Kind::int8 ? 0x80 : 0);
  matrix.data = data;
  if (coded) {
    const int least = kind == Kind::int4 ? -8 : -127, most = kind == Kind::int4 ? 7 : 127;
    for (size_t i = 0; i < numbers_of; i++) {
      const int odd = random.below(6);
      codes.push_back(odd == 0 ? least : odd == 1 ? most : least + random.below(most - least + 1));
    }
    uint16_t* tile_scales = reinterpret_cast<uint16_t*>(aligned(tile_scales_, tiles * groups * LANES * 2, 0));
    matrix.scales = tile_scales;
    for (size_t n = 0; n < size_t(rows); n++)
      for (size_t g = 0; g < groups; g++) {
        const uint16_t scale = half_of(ldexpf(0.5f + random.uniform(), -random.below(16)));
        row_scales.push_back(scale);
        tile_scales[(n / 16 * groups + g) * 16 + n % 16] = scale;
      }
  } else {
    for (size_t i = 0; i < numbers_of; i++) {
      const float x = (random.uniform() * 2 - 1) * (random.below(20) ? 1.f : 30.f);
      floats.push_back(kind == Kind::float16 ? float_of_half(half_of(x)) : x);
    }
  }
  for (size_t n = 0; n < size_t(rows); n++)
    for (size_t k = 0; k < size_t(columns); k++) {
      const size_t from = n * size_t(columns) + k;
      uint8_t* tile = data + n / 16 * tile_bytes(matrix);
      const size_t lane = n % 16;
      switch (kind) {
        case Kind::float32: memcpy(tile + (k * 16 + lane) * 4, &floats[from], 4); break;
        case Kind::float16: {
          const uint16_t half = half_of(floats[from]);
          memcpy(tile + (k * 16 + lane) * 2, &half, 2);
          break;
        }
        case Kind::int8: tile[k / 4 * 64 + lane * 4 + k % 4] = uint8_t(codes[from] + 128); break;
        case Kind::int4: {
          uint8_t& byte = tile[k / 8 * 64 + lane * 4 + k % 4];
          const int code = codes[from] + 8;
          byte = uint8_t(k % 8 < 4 ? (byte & 0xf0) | code : (byte & 0x0f) | code << 4);
          break;
        }
      }
    }
}

float TestMatrix::scale(int n, int g) const { return float_of_half(row_scales[size_t(n) * size_t(groups_of(matrix)) + size_t(g)]); }

float TestMatrix::value(int n, int k) const {
  const size_t i = size_t(n) * size_t(matrix.columns) + size_t(k);
  return codes.empty() ? floats[i] : float(codes[i]) * scale(n, k / matrix.group);
}

const std::vector<const Kernels*>& tables() {
  static std::vector<const Kernels*> found;
  if (found.empty()) {
    for (int i = 0; const char* name = kernels_at(i); i++) {
      if (const Kernels* kernels = kernels_named(name)) found.push_back(kernels);
      else printf("skipped: %s, which this processor does not run\n", name);
    }
  }
  return found;
}

}  // namespace edgeloop::test

int main(int count, char** names) {
  using namespace edgeloop::test;
  const struct {
    const char* name;
    void (*run)();
  } tests[] = {{"models", test_models}, {"products", test_products}, {"functions", test_functions},
               {"tables", test_tables}, {"attention", test_attention}, {"amx", test_amx}};
  int ran = 0;
  for (const auto& test : tests) {
    bool wanted = count < 2;
    for (int i = 1; i < count; i++) wanted |= strcmp(names[i], test.name) == 0;
    if (!wanted) continue;
    const int before = failures();
    test.run();
    printf("%s: %s\n", test.name, failures() == before ? "all hold" : "FAILED");
    ran++;
  }
  return failures() != 0 || ran == 0;
}
