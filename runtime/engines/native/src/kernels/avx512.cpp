// The kernels with AVX-512 F, BW, VL, DQ and VNNI. Compiled with these; see flags in docs/native.md.
#if defined(__x86_64__)

#include "simd_avx512.h"

namespace {
constexpr int kCodeRows = 12, kFloatRows = 3, kMixLanes = 4;
}

#include "codes_avx512.h"
#include "table.h"

namespace edgeloop {
extern const Kernels kAvx512;
const Kernels kAvx512 = table_named("avx512");
}  // namespace edgeloop

#endif
