// What the fuzzer does with a model that was opened.
#pragma once

#include "engine.h"
#include "test_lot.h"

namespace edgeloop {

// A session, and some calls of it and of its decoders.
void call(el_model& model, test::Lot& lot);

}  // namespace edgeloop
