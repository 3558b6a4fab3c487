// The kernels in plain C++: for processors without better, and the definition of every kernel's bits.
#include "simd_portable.h"

namespace {
constexpr int kCodeRows = 4, kFloatRows = 1, kMixLanes = 1;
}

#include "codes_portable.h"
#include "table.h"

namespace edgeloop {
extern const Kernels kPortable;
const Kernels kPortable = table_named("portable");
}  // namespace edgeloop
