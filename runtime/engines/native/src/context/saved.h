// A context in a file: the twin of runtime/context/saved.py and saved_header.py, whose format it reads and writes.
#pragma once

#include "context.h"

namespace edgeloop::context {

struct Saved {
  static void write(Context& context, const char* path);
  // Throws; the context may hold anything then, and is to be emptied.
  static void read(Context& context, const char* path);
};

}  // namespace edgeloop::context
