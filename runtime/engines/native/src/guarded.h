// What every function of the C interface does: arguments are checked, calls of one model take turns, and what is thrown
// becomes a code.
#pragma once

#include <mutex>

#include "engine.h"
#include "error.h"

namespace edgeloop {

// Runs `body` with its `data` → EL_OK, or the code of what it throws. One function for all of the interface: what catches
// takes more room than most bodies.
int caught(char* error, void (*body)(void*), void* data);

template <class Body>
int guarded(char* error, Body body) {
  return caught(error, [](void* data) { (*static_cast<Body*>(data))(); }, &body);
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
