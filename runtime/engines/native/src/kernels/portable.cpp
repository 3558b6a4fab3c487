// The kernels in plain C++: for processors without better, and the definition of every kernel's bits.
#include "simd_portable.h"

namespace {
// A head at a time: its sums are all that fits the registers, and what shares more is a tenth of the library.
constexpr int CODE_ROWS = 4, PAIR_ROWS = 0, FLOAT_ROWS = 1, MIX_LANES = 1, SCORE_BLOCKS = 1, HEADS = 1;
}

#include "codes_portable.h"
#include "table.h"

namespace edgeloop {
extern const Kernels PORTABLE;
const Kernels PORTABLE = table_named("portable");
}  // namespace edgeloop
