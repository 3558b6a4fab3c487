// Kernels by name as C functions, for tests in Python.
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

using namespace edgeloop;

#define SEEN extern "C" __attribute__((visibility("default")))

SEEN int kernels_run(const char* table) { return kernels_named(table) != nullptr; }

// x [rows][columns] times a coded matrix with int8 activations → y [rows][N].
SEEN void int8_product(const char* table, int kind, const void* tiles, const uint16_t* scales, int n, int columns, int group, const float* x,
                  int rows, int8_t* codes, float* x_scales, int32_t* sums, float* y) {
  const Kernels& kernels = *kernels_named(table);
  const Matrix w{tiles, scales, n, columns, group, Kind(kind)};
  const int groups = groups_of(w), stride = padded(columns);
  for (int m = 0; m < rows; m++)
    kernels.quantize(x + m * columns, columns, group, zero_code(w.kind), codes + m * stride, x_scales + m * groups, sums + m * groups);
  kernels.product_codes(w, {codes, x_scales, sums}, rows, 0, tiles_of(w), {y, n, nullptr, false});
}

// The same with float activations, for every kind.
SEEN void float_product(const char* table, int kind, const void* tiles, const uint16_t* scales, int n, int columns, int group, const float* x,
                   int rows, float* y) {
  const Matrix w{tiles, scales, n, columns, group, Kind(kind)};
  kernels_named(table)->product_floats(w, x, columns, rows, 0, tiles_of(w), {y, n, nullptr, false});
}


// Attention of q [rows][dims] over tokens of k and v [tokens][dims] in int8; row m sees all tokens but the last rows - 1 - m.
SEEN void int8_attention(const char* table, const float* q, const float* k, const float* v, int rows, int tokens, int dims, float scale,
                    float* y) {
  const Kernels& kernels = *kernels_named(table);
  const size_t part = cache_part(CacheKind::int8, dims), count = size_t(tokens + 15) / 16;
  std::vector<uint8_t> memory(count * 2 * part, 0xff);
  std::vector<const void*> blocks;
  for (size_t b = 0; b < count; b++) blocks.push_back(memory.data() + b * 2 * part);
  for (int t = 0; t < tokens; t++) {
    uint8_t* block = memory.data() + size_t(t / 16) * 2 * part;
    kernels.store_key[int(CacheKind::int8)](k + t * dims, dims, t % 16, block);
    kernels.store_value[int(CacheKind::int8)](v + t * dims, dims, t % 16, block + part);
  }
  std::vector<int32_t> first(size_t(rows), 0), last;
  for (int m = 0; m < rows; m++) last.push_back(tokens - (rows - 1 - m));
  std::vector<float> scratch(attend_scratch(tokens, dims));
  kernels.attend[int(CacheKind::int8)]({q, y, dims, dims, rows, 1, dims, first.data(), last.data(), {blocks.data(), 0, part}, scale, 0,
      scratch.data()});
}
