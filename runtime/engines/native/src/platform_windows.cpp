#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <io.h>
#include <malloc.h>
#include <windows.h>

#include <cstring>
#include <string>

#include "error.h"
#include "platform.h"

namespace edgeloop {

namespace {

std::wstring wide(const char* text) {
  const int length = MultiByteToWideChar(CP_UTF8, 0, text, -1, nullptr, 0);
  std::wstring found(size_t(length > 0 ? length : 1), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, text, -1, found.data(), length);
  return found;
}

[[noreturn]] void refuse(const char* path, DWORD reason) {
  char text[96] = "";
  FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, reason, 0, text, sizeof text, nullptr);
  text[std::strcspn(text, "\r\n")] = 0;
  fail(EL_FILE, "%.130s: %s (error %lu)", path, text, reason);
}

// Closed at the end of its life; what is mapped stays.
struct Handle {
  HANDLE value;
  ~Handle() {
    if (value && value != INVALID_HANDLE_VALUE) CloseHandle(value);
  }
};

}  // namespace

MappedFile map_file(const char* path) {
  const DWORD shared = FILE_SHARE_READ | FILE_SHARE_DELETE;
  const Handle file{CreateFileW(wide(path).c_str(), GENERIC_READ, shared, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr)};
  if (file.value == INVALID_HANDLE_VALUE) refuse(path, GetLastError());
  LARGE_INTEGER size;
  if (!GetFileSizeEx(file.value, &size)) refuse(path, GetLastError());
  if (size.QuadPart == 0) return {};
  const Handle mapping{CreateFileMappingW(file.value, nullptr, PAGE_READONLY, 0, 0, nullptr)};
  if (!mapping.value) refuse(path, GetLastError());
  const void* bytes = MapViewOfFile(mapping.value, FILE_MAP_READ, 0, 0, 0);
  if (!bytes) refuse(path, GetLastError());
  return {static_cast<const uint8_t*>(bytes), size_t(size.QuadPart)};
}

void unmap_file(const MappedFile& file) {
  if (file.bytes) UnmapViewOfFile(file.bytes);
}

double open_plain(const char* path, std::FILE*& file) {
  file = _wfopen(wide(path).c_str(), L"rb");
  if (!file) refuse(path, GetLastError());
  const __int64 size = _fseeki64(file, 0, SEEK_END) ? -1 : _ftelli64(file);
  if (size < 0 || _fseeki64(file, 0, SEEK_SET)) std::fclose(file), file = nullptr, refuse(path, GetLastError());
  return double(size);
}

std::FILE* create_beside(const char* path, std::string& fresh) {
  fresh = std::string(path) + "." + std::to_string(GetCurrentProcessId()) + "-" + std::to_string(GetCurrentThreadId());
  std::FILE* file = _wfopen(wide(fresh.c_str()).c_str(), L"wbx");
  if (!file) fresh.clear(), refuse(path, GetLastError());
  return file;
}

bool flush_to_disk(std::FILE* file) { return !std::fflush(file) && FlushFileBuffers(HANDLE(_get_osfhandle(_fileno(file)))); }

bool replace_file(const char* fresh, const char* path) {
  return MoveFileExW(wide(fresh).c_str(), wide(path).c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH);
}

void remove_file(const char* path) { DeleteFileW(wide(path).c_str()); }

void* allocate_aligned(size_t bytes) { return _aligned_malloc(bytes, MEMORY_ALIGNMENT); }

void free_aligned(void* memory) { _aligned_free(memory); }

}  // namespace edgeloop

#endif
