// Products of many rows of codes with AMX; all else is as in avx512.cpp. Compiled with its flags (build.py), and null where the
// compiler does not know them. Linux: elsewhere it is not known how a process is given tiles.
#if defined(__x86_64__)

#if defined(__AMX_INT8__) && defined(__linux__)

#pragma GCC diagnostic ignored "-Wunused-function"  // of the headers' other kernels

#include "simd_avx512.h"

namespace {
constexpr int CODE_ROWS = 0, PAIR_ROWS = 0, FLOAT_ROWS = 1;  // none: the products of codes.h are not those of this file
}

#include "codes_amx.h"
#include "tiles_amx.h"

namespace edgeloop {

extern const Kernels AVX512;

namespace {

void product(const Matrix& w, const Codes& x, int32_t rows, int32_t first, int32_t last, const Output& out) {
  if (rows < TILED_ROWS) AVX512.product_codes(w, x, rows, first, last, out);
  else product_tiles<ProcessorTiles>(w, x, rows, first, last, out);
}

}  // namespace

extern const ProductCodes AMX_PRODUCT;
const ProductCodes AMX_PRODUCT = product;
}  // namespace edgeloop

#else

#include "kernels.h"

namespace edgeloop {
extern const ProductCodes AMX_PRODUCT;
const ProductCodes AMX_PRODUCT = nullptr;
}  // namespace edgeloop

#endif
#endif
