// What goes wrong, on its way to the caller: thrown inside, an el_code and a line of text outside.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "edgeloop_types.h"

namespace edgeloop {

struct Error {
  el_code code;
  char text[EL_ERROR_SIZE];
};

// Throw an Error whose line is made as printf makes it.
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(el_code code, const char* format, ...) {
  Error error;
  error.code = code;
  va_list values;
  va_start(values, format);
  std::vsnprintf(error.text, sizeof error.text, format, values);
  va_end(values);
  for (char& c : error.text)
    if (c == '\n' || c == '\r') c = ' ';  // of a name that somebody wrote into a file
  throw error;
}

}  // namespace edgeloop
