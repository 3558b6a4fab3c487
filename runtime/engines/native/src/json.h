// JSON of files that are not trusted: read whole, to a depth that is bounded; and texts written into it.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "json_string.h"

namespace edgeloop::json {

constexpr int MOST_NESTED = 64;

struct Value {
  enum Kind { null, boolean, number, text, array, object } kind = null;
  bool truth = false;
  double amount = 0;
  std::string string;                                    // of a text; of a number as it stands there
  std::vector<Value> items;                              // of an array
  std::vector<std::pair<std::string, Value>> members;    // of an object, in order

  // The member `name` of an object, or null.
  const Value* find(const char* name) const;
};

// Throws an Error with EL_FORMAT for what is no JSON, UTF-8 included.
Value read(const char* text, size_t bytes);

}  // namespace edgeloop::json
