// Products of codes with AVX-VNNI, the dot products of AVX-512 VNNI for processors without AVX-512; all else is as in avx2.cpp.
// Compiled with its flags (build.py), and null where the compiler does not know them.
#if defined(__x86_64__)

#if defined(__AVXVNNI__)

#pragma GCC diagnostic ignored "-Wunused-function"  // of the headers' other kernels

#include "simd_avx2.h"

namespace {
constexpr int CODE_ROWS = 6, PAIR_ROWS = 0, FLOAT_ROWS = 1;
}

#include "codes_avxvnni.h"

namespace edgeloop {
extern const ProductCodes AVXVNNI_PRODUCT;
const ProductCodes AVXVNNI_PRODUCT = product_codes;
}  // namespace edgeloop

#else

#include "kernels.h"

namespace edgeloop {
extern const ProductCodes AVXVNNI_PRODUCT;
const ProductCodes AVXVNNI_PRODUCT = nullptr;
}  // namespace edgeloop

#endif
#endif
