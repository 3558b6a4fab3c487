// The kernels with the NEON of every 64-bit Arm processor.
#if defined(__aarch64__)

#include "simd_neon.h"

namespace {
constexpr int CODE_ROWS = 4, PAIR_ROWS = 0, FLOAT_ROWS = 1, MIX_LANES = 1, SCORE_BLOCKS = 1, HEADS = 4;
}

#include "codes_neon.h"

namespace {
template <Kind kind, int M> void codes_tile(const Factors& f, F* y) { codes_tile_plain<kind, M>(f, y); }
}

#include "table.h"

namespace edgeloop {
extern const Kernels NEON;
const Kernels NEON = table_named("neon");
}  // namespace edgeloop

#endif
