// Nobody has run it on Windows itself; `make native-cross` runs it under wine.
#include "../platform_windows.h"

#if defined(_WIN32)

#include <algorithm>
#include <iterator>

#include "../error.h"
#include "disk.h"

namespace edgeloop::update {

namespace {

constexpr DWORD SHARED = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
constexpr int TRIES = 100;
constexpr const char* LOCK = "lock";

HANDLE handle_of(intptr_t value) { return reinterpret_cast<HANDLE>(value); }

// A link is opened itself, and a link is no file.
HANDLE opened(const std::string& path, DWORD access, DWORD how) {
  return CreateFileW(wide(path).c_str(), access, SHARED, nullptr, how, FILE_FLAG_OPEN_REPARSE_POINT, nullptr);
}

Kind kind_by(DWORD attributes) {
  if (attributes & (FILE_ATTRIBUTE_REPARSE_POINT | FILE_ATTRIBUTE_DEVICE)) return Kind::other;
  return attributes & FILE_ATTRIBUTE_DIRECTORY ? Kind::folder : Kind::file;
}

bool is_missing(DWORD reason) { return reason == ERROR_FILE_NOT_FOUND || reason == ERROR_PATH_NOT_FOUND; }

// A file that something has open, a scanner for viruses for a moment, cannot be renamed; nor can a folder that it lies in.
bool may_pass(DWORD reason) { return reason == ERROR_ACCESS_DENIED || reason == ERROR_SHARING_VIOLATION; }

// A file with the read-only attribute goes as well, as everywhere else. ERROR_SUCCESS, or the reason.
DWORD removed(const std::wstring& path) {
  if (DeleteFileW(path.c_str())) return ERROR_SUCCESS;
  const DWORD reason = GetLastError(), attributes = GetFileAttributesW(path.c_str());
  if (reason != ERROR_ACCESS_DENIED || attributes == INVALID_FILE_ATTRIBUTES || !(attributes & FILE_ATTRIBUTE_READONLY)) return reason;
  SetFileAttributesW(path.c_str(), attributes & ~DWORD(FILE_ATTRIBUTE_READONLY));
  return DeleteFileW(path.c_str()) ? ERROR_SUCCESS : GetLastError();
}

}  // namespace

OpenFile::OpenFile(const std::string& path, How how) : path_(path) {
  const bool writes = how == How::write;
  const HANDLE handle = opened(path, writes ? GENERIC_READ | GENERIC_WRITE : GENERIC_READ, writes ? OPEN_ALWAYS : OPEN_EXISTING);
  if (handle == INVALID_HANDLE_VALUE) refuse(path, GetLastError());
  BY_HANDLE_FILE_INFORMATION about;
  const bool plain = GetFileType(handle) == FILE_TYPE_DISK && GetFileInformationByHandle(handle, &about) &&
                     kind_by(about.dwFileAttributes) == Kind::file;
  if (!plain || (writes && !SetEndOfFile(handle))) {
    const DWORD reason = GetLastError();
    CloseHandle(handle);
    if (plain) refuse(path, reason);
    fail(EL_FILE, "%.160s is no file", path.c_str());
  }
  handle_ = reinterpret_cast<intptr_t>(handle);
}

OpenFile::~OpenFile() { CloseHandle(handle_of(handle_)); }

uint64_t OpenFile::size() const {
  LARGE_INTEGER size;
  if (!GetFileSizeEx(handle_of(handle_), &size)) refuse(path_, GetLastError());
  return uint64_t(size.QuadPart);
}

void OpenFile::read(void* data, size_t count, uint64_t offset) const {
  for (char* to = static_cast<char*>(data); count;) {
    OVERLAPPED at = {};
    at.Offset = DWORD(offset), at.OffsetHigh = DWORD(offset >> 32);
    DWORD got = 0;
    if (!ReadFile(handle_of(handle_), to, DWORD(std::min<size_t>(count, 1 << 30)), &got, &at) && GetLastError() != ERROR_HANDLE_EOF)
      refuse(path_, GetLastError());
    if (got == 0) fail(EL_FORMAT, "%.160s ends too early; copy it again", path_.c_str());
    to += got, count -= got, offset += got;
  }
}

void OpenFile::write(const void* data, size_t count) const {
  for (const char* from = static_cast<const char*>(data); count;) {
    DWORD put = 0;
    if (!WriteFile(handle_of(handle_), from, DWORD(std::min<size_t>(count, 1 << 30)), &put, nullptr)) refuse(path_, GetLastError());
    from += put, count -= put;
  }
}

void OpenFile::sync() const {
  if (!FlushFileBuffers(handle_of(handle_))) refuse(path_, GetLastError());
}

// Windows locks no folders: the lock is one of a file in it, which the next process takes where one was killed.
LockedFolder::LockedFolder(const std::string& path) : path_(path) {
  for (int tries = 0; tries < TRIES; tries++) {
    make_folder(path);
    const HANDLE file = opened(inside(path, LOCK), GENERIC_READ | GENERIC_WRITE, OPEN_ALWAYS);
    if (file == INVALID_HANDLE_VALUE) {  // on its way out, with its folder or before it
      if (!is_missing(GetLastError()) && !may_pass(GetLastError())) refuse(path, GetLastError());
      Sleep(10);
      continue;
    }
    OVERLAPPED start = {};
    const bool taken = !LockFileEx(file, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &start) &&
                       (GetLastError() == ERROR_LOCK_VIOLATION || GetLastError() == ERROR_IO_PENDING);
    FILE_STANDARD_INFO about;
    if (!taken && GetFileInformationByHandleEx(file, FileStandardInfo, &about, sizeof about) && !about.DeletePending &&
        about.NumberOfLinks) {
      handle_ = reinterpret_cast<intptr_t>(file);
      return;
    }
    CloseHandle(file);
    if (taken) fail(EL_USAGE, "%.160s: another process updates this bundle; wait for it", path.c_str());
  }
  fail(EL_FILE, "%.160s cannot be locked, or does not stay there", path.c_str());
}

LockedFolder::~LockedFolder() {
  if (handle_ != -1) CloseHandle(handle_of(handle_));
}

// The lock's file is the last to go, and the folder only when it is empty: another process may be in it by then.
void LockedFolder::remove() {
  for (const Entry& entry : entries_of(path_))
    if (entry.name != LOCK) remove_tree(inside(path_, entry.name));
  removed(wide(inside(path_, LOCK)));
  CloseHandle(handle_of(handle_));
  handle_ = -1;
  discard(path_, Kind::folder);
}

Kind kind_of(const std::string& path) {
  const DWORD attributes = GetFileAttributesW(wide(path).c_str());
  return attributes == INVALID_FILE_ATTRIBUTES ? Kind::none : kind_by(attributes);
}

uint64_t size_of(const std::string& path) {
  WIN32_FILE_ATTRIBUTE_DATA about;
  if (!GetFileAttributesExW(wide(path).c_str(), GetFileExInfoStandard, &about)) refuse(path, GetLastError());
  return uint64_t(about.nFileSizeHigh) << 32 | about.nFileSizeLow;
}

std::string real_path(const char* path) {
  std::string given(path), last;
  std::replace(given.begin(), given.end(), '\\', '/');
  while (given.size() > 1 && given.back() == '/' && given[given.size() - 2] != ':') given.pop_back();
  const auto resolved = [&](const std::string& name) {
    const Handle folder(CreateFileW(wide(name).c_str(), 0, SHARED, nullptr, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, nullptr));
    if (!folder) return std::wstring();
    std::wstring found(GetFinalPathNameByHandleW(folder.value, nullptr, 0, VOLUME_NAME_DOS), L'\0');
    found.resize(found.empty() ? 0 : GetFinalPathNameByHandleW(folder.value, found.data(), DWORD(found.size()), VOLUME_NAME_DOS));
    if (!found.empty()) return found;
    // Of some file systems there is no such name, nor of long ones in wine. It is needed where the folder is a link.
    if (kind_of(name) != Kind::folder) fail(EL_FILE, "%.160s: where this link leads has no name; give that folder itself", path);
    return wide(name);
  };
  std::wstring found = resolved(given);
  if (found.empty() && is_missing(GetLastError())) {  // it may be between two names
    const size_t slash = given.rfind('/');
    last = slash == std::string::npos ? given : given.substr(slash + 1);
    found = resolved(slash == std::string::npos ? "." : given.substr(0, slash + 1));
  }
  if (found.empty()) refuse(path, GetLastError());
  if (found.compare(0, 8, L"\\\\?\\UNC\\") == 0) found = L"\\" + found.substr(7);
  else if (found.compare(0, 4, L"\\\\?\\") == 0) found = found.substr(4);
  std::string real = utf8(found);
  std::replace(real.begin(), real.end(), '\\', '/');
  return last.empty() ? real : real.back() == '/' ? real + last : inside(real, last);
}

std::vector<Entry> entries_of(const std::string& folder) {
  WIN32_FIND_DATAW about;
  const HANDLE list = FindFirstFileW(wide(inside(folder, "*")).c_str(), &about);
  if (list == INVALID_HANDLE_VALUE) refuse(folder, GetLastError());
  std::vector<Entry> found;
  do {
    const std::string name = utf8(about.cFileName);
    if (name != "." && name != "..") found.push_back({name, kind_by(about.dwFileAttributes)});
  } while (FindNextFileW(list, &about));
  const DWORD reason = GetLastError();
  FindClose(list);
  if (reason != ERROR_NO_MORE_FILES) refuse(folder, reason);
  return found;
}

void make_folder(const std::string& path) {
  for (int tries = 0; !CreateDirectoryW(wide(path).c_str(), nullptr); tries++) {
    const DWORD reason = GetLastError();
    const Kind kind = reason == ERROR_ALREADY_EXISTS ? kind_of(path) : Kind::other;
    if (kind == Kind::folder) return;
    if (kind != Kind::none || tries == TRIES) refuse(path, reason);  // none: another process has just removed it
  }
}

void rename_to(const std::string& from, const std::string& to) {
  const std::wstring old = wide(from), fresh = wide(to);
  for (int tries = 1;; tries++) {
    if (MoveFileExW(old.c_str(), fresh.c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) return;
    const DWORD reason = GetLastError();
    if (may_pass(reason) && tries < TRIES) Sleep(10);
    else if (may_pass(reason)) fail(EL_FILE, "%.150s cannot be renamed: close what has a file of it open (error %lu)", from.c_str(), reason);
    else refuse(to, reason);
  }
}

bool exchange(const std::string&, const std::string&) { return false; }

bool link_to(const std::string& from, const std::string& to) {
  return CreateHardLinkW(wide(to).c_str(), wide(from).c_str(), nullptr);
}

void remove_file(const std::string& path) {
  const DWORD reason = removed(wide(path));
  if (reason != ERROR_SUCCESS && !is_missing(reason)) refuse(path, reason);
}

void discard(const std::string& path, Kind kind) {
  const std::wstring name = wide(path);
  if (kind == Kind::folder) RemoveDirectoryW(name.c_str());
  else if (removed(name) != ERROR_SUCCESS) RemoveDirectoryW(name.c_str());  // a link to a folder goes as a folder does
}

// As far as it goes: whoever may not write to the folder may not flush it, and NTFS orders changes of names by itself.
void sync_folder(const std::string& path) {
  const DWORD whole = FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT;
  const Handle folder(CreateFileW(wide(path).c_str(), GENERIC_WRITE, SHARED, nullptr, OPEN_EXISTING, whole, nullptr));
  if (folder) FlushFileBuffers(folder.value);
}

uint64_t free_bytes(const std::string& path) {
  ULARGE_INTEGER free;
  if (!GetDiskFreeSpaceExW((wide(path) + L"\\").c_str(), &free, nullptr, nullptr)) refuse(path, GetLastError());
  return free.QuadPart;
}

}  // namespace edgeloop::update

#endif
