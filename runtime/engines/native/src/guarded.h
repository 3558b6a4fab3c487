// What every function of the C interface does: arguments are checked, calls of one model take turns, and what is thrown
// becomes a code.
#pragma once

#include <cstdio>
#include <exception>
#include <mutex>
#include <new>

#include "engine.h"
#include "error.h"

namespace edgeloop {

inline int told(char* error, el_code code, const char* text) {
  if (error) std::snprintf(error, EL_ERROR_SIZE, "%s", text);
  return code;
}

template <class Body>
int guarded(char* error, Body body) {
  try {
    body();
    return EL_OK;
  } catch (const Error& found) {
    return told(error, found.code, found.text);
  } catch (const std::bad_alloc&) {
    return told(error, EL_MEMORY, "out of memory");
  } catch (const std::exception& found) {  // of the standard library: a size or a thread that the system has not
    return told(error, EL_MEMORY, found.what());
  } catch (...) {
    return told(error, EL_MEMORY, "unknown error");
  }
}

// A call that computes.
template <class Body>
int computing(el_session* session, char* error, Body body) {
  return guarded(error, [&] {
    if (!session) fail(EL_USAGE, "session is NULL");
    const std::lock_guard turn(session->model.computing);
    body(*session);
    session->calls++;
  });
}

inline void check_struct(uint32_t found, size_t wanted, const char* name) {
  if (found != wanted)
    fail(EL_USAGE, "%s of %u bytes, wanted %zu: compiled with another edgeloop.h", name, found, wanted);
}

}  // namespace edgeloop
