// The kernels with NEON and its dot products (optional in ARMv8.2), compiled for these (build.py has the flags); nothing where the
// compiler does not know them.
#if defined(__aarch64__)

#if defined(__ARM_FEATURE_DOTPROD)

#include "simd_neon.h"

namespace {
constexpr int CODE_ROWS = 4, PAIR_ROWS = 0, FLOAT_ROWS = 1, MIX_LANES = 1, SCORE_BLOCKS = 1, HEADS = 4;
}

#include "codes_neon.h"

namespace {
template <Kind kind, int M> void codes_tile(const Factors& f, F* y) { codes_tile_dot<kind, M>(f, y); }
}

#include "table.h"

namespace edgeloop {
extern const Kernels DOTPROD;
const Kernels DOTPROD = table_named("dotprod");
}  // namespace edgeloop

#else

#include "kernels.h"

namespace edgeloop {
extern const Kernels DOTPROD;
const Kernels DOTPROD = {};
}  // namespace edgeloop

#endif
#endif
