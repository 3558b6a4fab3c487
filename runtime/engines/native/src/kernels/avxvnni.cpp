// The kernels with AVX2, F16C and AVX-VNNI (the dot products of AVX-512 VNNI for processors without AVX-512), compiled for these
// (build.py has the flags); nothing where the compiler does not know them.
#if defined(__x86_64__)

#if defined(__AVXVNNI__)

#include "simd_avx2.h"

namespace {
constexpr int CODE_ROWS = 6, FLOAT_ROWS = 1, MIX_LANES = 2, SCORE_BLOCKS = 1;
}

#include "codes_avxvnni.h"
#include "table.h"

namespace edgeloop {
extern const Kernels AVXVNNI;
const Kernels AVXVNNI = table_named("avxvnni");
}  // namespace edgeloop

#else

#include "kernels.h"

namespace edgeloop {
extern const Kernels AVXVNNI;
const Kernels AVXVNNI = {};
}  // namespace edgeloop

#endif
#endif
