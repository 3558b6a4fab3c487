// Products by the tiles of AMX, on a model of these in plain C++, so on every processor: every table's bits, whatever the shape. On
// processors with AMX: its instructions do what the model says.
#include <cstring>

#include "test.h"

#include "kernels/simd_portable.h"

namespace {
constexpr int CODE_ROWS = 0, PAIR_ROWS = 0, FLOAT_ROWS = 1;  // none: the products of codes.h are not those of this file
}

#pragma GCC diagnostic ignored "-Wunused-function"  // of the headers' other kernels

#include "kernels/codes_amx.h"

#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxint8intrin.h>)
#define HAS_INSTRUCTIONS
#include "kernels/tiles_amx.h"
#endif

namespace edgeloop::test {

namespace {

// Eight tiles of at most 16 rows of at most 64 bytes, as Intel's manual describes them; what a processor answers with a fault is
// a failure.
struct ModelTiles {
  struct Tile {
    uint8_t bytes[16][64];
    int rows, columns;  // in bytes
  };
  static inline Tile tiles[8];
  static inline bool configured = false;
  static inline int64_t multiplied = 0;

  static void configure(const TileShapes& shapes) {
    uint8_t memory[64];
    memcpy(memory, &shapes, sizeof memory);
    bool fits = memory[0] == 1 && memory[1] == 0;
    for (int t = 0; t < 16; t++) {
      const int columns = memory[16 + 2 * t] | memory[17 + 2 * t] << 8, rows = memory[48 + t];
      fits &= t < 8 ? rows >= 1 && rows <= 16 && columns >= 4 && columns <= 64 && columns % 4 == 0 : rows == 0 && columns == 0;
      if (t < 8) tiles[t].rows = rows, tiles[t].columns = columns, memset(tiles[t].bytes, 0, sizeof tiles[t].bytes);
    }
    for (int i = 2; i < 16; i++) fits &= memory[i] == 0;
    expect(fits, "amx: tiles of such shapes are not configured");
    configured = fits;
  }
  static void release() { configured = false; }
  template <int T> static void zero() { memset(tiles[T].bytes, 0, sizeof tiles[T].bytes); }
  template <int T> static void load(const void* from, int64_t stride) {
    expect(configured, "amx: a tile is loaded that is not configured");
    zero<T>();  // rows and bytes that the shape has not become zeros
    for (int m = 0; m < tiles[T].rows; m++) memcpy(tiles[T].bytes[m], static_cast<const char*>(from) + m * stride, size_t(tiles[T].columns));
  }
  template <int T> static void store(void* to, int64_t stride) {
    expect(configured, "amx: a tile is stored that is not configured");
    for (int m = 0; m < tiles[T].rows; m++) memcpy(static_cast<char*>(to) + m * stride, tiles[T].bytes[m], size_t(tiles[T].columns));
  }
  // tdpbssd: word n of row m of `To` += the 4 products of signed bytes of word k of row m of A and word n of row k of B, for all k.
  template <int To, int A, int B> static void add_products() {
    Tile &c = tiles[To], &a = tiles[A], &b = tiles[B];
    expect(configured && c.rows == a.rows && c.columns == b.columns && a.columns / 4 == b.rows, "amx: tiles whose shapes do not fit");
    for (int m = 0; m < c.rows; m++)
      for (int n = 0; n < c.columns / 4; n++) {
        uint32_t sum;
        memcpy(&sum, c.bytes[m] + 4 * n, 4);
        for (int k = 0; k < a.columns; k++) sum += uint32_t(int8_t(a.bytes[m][k]) * int8_t(b.bytes[k / 4][4 * n + k % 4]));
        memcpy(c.bytes[m] + 4 * n, &sum, 4);
      }
    multiplied++;
  }
};

struct Quantized {
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
};

Quantized quantized(const Matrix& w, const std::vector<float>& x, int rows) {
  const size_t groups = size_t(groups_of(w)), stride = size_t(padded(w.columns));
  Quantized q{std::vector<int8_t>(stride * size_t(rows)), std::vector<float>(groups * size_t(rows)), std::vector<int32_t>(groups * size_t(rows))};
  for (size_t m = 0; m < size_t(rows); m++)
    kernels_named("portable")->quantize(x.data() + m * size_t(w.columns), w.columns, w.group, zero_code(w.kind), &q.codes[m * stride],
                                        &q.scales[m * groups], &q.sums[m * groups]);
  return q;
}

// The same product by tiles and by the portable table, in one go and in pieces of tiles, with a bias and added to what is there.
void alike(Random& random, Kind kind, int rows, int n, int columns, int group, Sort sort) {
  const TestMatrix w(random, kind, n, columns, group);
  const Quantized q = quantized(w.matrix, numbers(random, rows * columns, sort), rows);
  const Codes x{const_cast<int8_t*>(q.codes.data()), const_cast<float*>(q.scales.data()), const_cast<int32_t*>(q.sums.data())};
  const std::vector<float> bias = numbers(random, n, Sort::plain);
  const int tiles = tiles_of(w.matrix), stride = n + 5;
  for (bool added : {false, true}) {
    std::vector<float> wanted = numbers(random, rows * stride, Sort::plain), found = wanted;
    kernels_named("portable")->product_codes(w.matrix, x, rows, 0, tiles, {wanted.data(), stride, added ? bias.data() : nullptr, added});
    const int64_t before = ModelTiles::multiplied;
    const Output out{found.data(), stride, added ? bias.data() : nullptr, added};
    for (int t = 0, c; t < tiles; t += c) {
      c = added ? tiles : 1 + random.below(tiles - t);
      product_tiles<ModelTiles>(w.matrix, x, rows, t, t + c, out);
    }
    const std::string what = std::to_string(rows) + " rows of " + std::to_string(columns) + " in groups of " + std::to_string(group);
    expect(same(wanted, found), "amx: " + what + ", kind " + std::to_string(int(kind)) + " by tiles");
    expect(ModelTiles::multiplied > before, "amx: " + what + " are not multiplied by tiles");
    expect(!ModelTiles::configured, "amx: tiles are not released");
  }
}

#ifdef HAS_INSTRUCTIONS

// Both do the same on the same bytes.
template <class Unit>
void run(const TileShapes& shapes, const int8_t* a, const int8_t* b, int32_t* sums) {
  Unit::configure(shapes);
  Unit::template load<SUMS>(sums, 64);
  Unit::template load<CODES>(a, 64);
  Unit::template load<WEIGHTS>(b, 64);
  Unit::template add_products<SUMS, CODES, WEIGHTS>();
  Unit::template store<SUMS>(sums, 64);
  Unit::template zero<SUMS + 1>();
  Unit::template store<SUMS + 1>(sums + 256, 64);
  Unit::release();
}

void instructions(Random& random) {
  int8_t a[1024], b[1024];
  int32_t sums[2][512];
  for (int8_t& x : a) x = int8_t(random.bits());
  for (int8_t& x : b) x = int8_t(random.bits());
  for (int i = 0; i < 512; i++) sums[0][i] = sums[1][i] = int32_t(random.bits());
  const TileShapes s = shapes(1 + random.below(16), 16 << random.below(3));
  run<ModelTiles>(s, a, b, sums[0]);
  run<ProcessorTiles>(s, a, b, sums[1]);
  expect(memcmp(sums[0], sums[1], sizeof sums[0]) == 0, "amx: the processor's tiles are not those of the model");
}

#endif

}  // namespace

void test_amx() {
  Random random(6);
  for (Kind kind : {Kind::int8, Kind::int4}) {
    for (int rows = 1; rows <= 70; rows++) alike(random, kind, rows, 1 + random.below(70), 96, 32, Sort::plain);
    for (int group : {16, 32, 48, 64, 80, 128, 256, 1024})
      for (int columns : {16, 64, 100, 200, 300}) alike(random, kind, 16 + random.below(40), 40, columns, group, Sort::plain);
    for (Sort sort : SORTS) alike(random, kind, 33, 20, 128, 64, sort);
    alike(random, kind, 20, 40, 4200, 128, Sort::plain);   // more columns than are kept unpacked
    alike(random, kind, 18, 20, 4200, 4200, Sort::plain);
  }
#ifdef HAS_INSTRUCTIONS
  if (kernels_named("amx"))
    for (int i = 0; i < 500; i++) instructions(random);
#endif
}

}  // namespace edgeloop::test
