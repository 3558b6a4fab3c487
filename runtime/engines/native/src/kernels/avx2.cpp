// The kernels with AVX2 and F16C, compiled for these (build.py has the flags).
#if defined(__x86_64__)

#include "simd_avx2.h"

namespace {
constexpr int CODE_ROWS = 4, PAIR_ROWS = 0, FLOAT_ROWS = 1, MIX_LANES = 2, SCORE_BLOCKS = 1, HEADS = 4;
}

#include "codes_avx2.h"
#include "table.h"

namespace edgeloop {
extern const Kernels AVX2;
const Kernels AVX2 = table_named("avx2");
}  // namespace edgeloop

#endif
