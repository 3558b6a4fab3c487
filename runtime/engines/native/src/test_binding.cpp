// Kernels by name as C functions, for tests in Python.
#include <cstdint>

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

