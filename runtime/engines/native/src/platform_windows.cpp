#if defined(_WIN32)

#include "platform_windows.h"

#include <io.h>
#include <malloc.h>

#include <cwchar>

#include "error.h"
#include "platform.h"

namespace edgeloop {

namespace {

// C:\… or \\…, with no name that Windows would read otherwise.
bool is_whole(const std::wstring& path) {
  const bool drive = path.size() > 2 && path[1] == L':' && path[2] == L'\\', share = path.compare(0, 2, L"\\\\") == 0;
  if (!drive && !share) return false;
  const std::wstring rest = path.substr(2) + L"\\";
  for (const wchar_t* odd : {L"\\\\", L"\\.\\", L"\\..\\"})
    if (rest.find(odd) != std::wstring::npos) return drive && rest == L"\\\\";  // C:\ itself
  return true;
}

std::wstring utf16(const std::string& text) {
  const int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text.data(), int(text.size()), nullptr, 0);
  if (length == 0 && !text.empty()) fail(EL_FILE, "%.160s is no UTF-8", text.c_str());
  std::wstring found(size_t(length), L'\0');
  MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text.data(), int(text.size()), found.data(), length);
  return found;
}

}  // namespace

std::wstring wide(const std::string& path) {
  std::wstring found = utf16(path);
  for (wchar_t& c : found)
    if (c == L'/') c = L'\\';
  if (!is_whole(found)) {
    std::wstring whole(GetFullPathNameW(found.c_str(), 0, nullptr, nullptr), L'\0');
    whole.resize(whole.empty() ? 0 : GetFullPathNameW(found.c_str(), DWORD(whole.size()), whole.data(), nullptr));
    if (whole.empty()) refuse(path, GetLastError());
    found = whole;
  }
  if (found.compare(0, 4, L"\\\\?\\") == 0 || found.compare(0, 4, L"\\\\.\\") == 0) return found;
  if (found.compare(0, 2, L"\\\\") == 0) return L"\\\\?\\UNC" + found.substr(1);
  return L"\\\\?\\" + found;
}

std::string utf8(const std::wstring& text) {
  const int length = WideCharToMultiByte(CP_UTF8, 0, text.data(), int(text.size()), nullptr, 0, nullptr, nullptr);
  std::string found(size_t(length), '\0');
  WideCharToMultiByte(CP_UTF8, 0, text.data(), int(text.size()), found.data(), length, nullptr, nullptr);
  return found;
}

void refuse(const std::string& path, DWORD reason) {
  wchar_t text[96] = L"";
  FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, reason, 0, text, 96, nullptr);
  text[std::wcscspn(text, L"\r\n")] = 0;
  fail(EL_FILE, "%.130s: %s (error %lu)", path.c_str(), utf8(text).c_str(), reason);
}

MappedFile map_file(const char* path) {
  const DWORD shared = FILE_SHARE_READ | FILE_SHARE_DELETE;
  const Handle file{CreateFileW(wide(path).c_str(), GENERIC_READ, shared, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr)};
  if (!file) refuse(path, GetLastError());
  LARGE_INTEGER size;
  if (!GetFileSizeEx(file.value, &size)) refuse(path, GetLastError());
  if (size.QuadPart == 0) return {};
  const Handle mapping{CreateFileMappingW(file.value, nullptr, PAGE_READONLY, 0, 0, nullptr)};
  if (!mapping) refuse(path, GetLastError());
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
