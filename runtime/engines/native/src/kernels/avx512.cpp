// The kernels with AVX-512 F, BW, VL, DQ and VNNI, compiled for these (build.py has the flags).
#if defined(__x86_64__)

#include "simd_avx512.h"

namespace {
constexpr int CODE_ROWS = 12, PAIR_ROWS = 6, FLOAT_ROWS = 3, MIX_LANES = 4, SCORE_BLOCKS = 2, HEADS = 4;
}

#include "codes_avx512.h"
#include "table.h"

namespace edgeloop {
extern const Kernels AVX512;
const Kernels AVX512 = table_named("avx512");
}  // namespace edgeloop

#endif
