// What files on Windows share: platform_windows.cpp, update/disk_windows.cpp.
#pragma once

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <string>

namespace edgeloop {

// A path in UTF-8, its names between / or \, as Windows takes it at any length: \\?\C:\…. Throws an Error (EL_FILE) where it
// is no UTF-8.
std::wstring wide(const std::string& path);
// The other way round. What is no UTF-16 becomes U+FFFD.
std::string utf8(const std::wstring& text);
// Throws an Error (EL_FILE) with the path and what Windows says of `reason`.
[[noreturn]] void refuse(const std::string& path, DWORD reason);

// Closed at the end of its life; what is mapped stays.
struct Handle {
  HANDLE value;
  explicit Handle(HANDLE given) : value(given) {}
  Handle(const Handle&) = delete;
  ~Handle() {
    if (*this) CloseHandle(value);
  }
  explicit operator bool() const { return value && value != INVALID_HANDLE_VALUE; }
};

}  // namespace edgeloop

#endif
