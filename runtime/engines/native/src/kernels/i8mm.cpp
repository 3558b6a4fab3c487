// The kernels with NEON, its dot products and products of matrices of bytes, compiled for these (build.py has the flags); nothing where the
// compiler does not know them.
// One row of codes has no second one to be multiplied with.
#if defined(__aarch64__)

#if defined(__ARM_FEATURE_MATMUL_INT8)

#include "simd_neon.h"

namespace {
constexpr int CODE_ROWS = 4, PAIR_ROWS = 0, FLOAT_ROWS = 1, MIX_LANES = 1, SCORE_BLOCKS = 1, HEADS = 4;
}

#include "codes_neon.h"

namespace {
template <Kind kind, int M> void codes_tile(const Factors& f, F* y) { M == 1 ? codes_tile_dot<kind, M>(f, y) : codes_tile_mmla<kind, M>(f, y); }
}

#include "table.h"

namespace edgeloop {
extern const Kernels I8MM;
const Kernels I8MM = table_named("i8mm");
}  // namespace edgeloop

#else

#include "kernels.h"

namespace edgeloop {
extern const Kernels I8MM;
const Kernels I8MM = {};
}  // namespace edgeloop

#endif
#endif
