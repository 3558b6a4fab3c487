// What calls with some rows cost here: a few passes on scratch slots, before the first draft. With 1, 2, 4 and 8 rows, always;
// what more and others cost follows from these (Cost).
#pragma once

#include "../engine.h"
#include "drafts.h"

namespace edgeloop::decode {

// Takes some 6 milliseconds, or two turns, of about four tokens, where those take longer. Called while `computing` is held.
Costs measure(const el_session& session, uint32_t depths);

}  // namespace edgeloop::decode
