// What calls with some rows cost here: a few passes on scratch slots, before the first draft.
#pragma once

#include "../engine.h"
#include "drafts.h"

namespace edgeloop::decode {

// Takes some 6 milliseconds, or as long as a few tokens where those take longer. Called while `computing` is held.
Costs measure(const el_session& session, uint32_t depths);

}  // namespace edgeloop::decode
