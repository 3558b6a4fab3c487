#if !defined(_WIN32)

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../error.h"
#include "disk.h"

#if defined(__linux__)
// Not in every C library: Android's has it from version 11 on. Null where it is not.
extern "C" int edgeloop_renameat2(int, const char*, int, const char*, unsigned) __asm__("renameat2") __attribute__((weak));
#endif

namespace edgeloop::update {

namespace {

constexpr int TRIES = 100;  // to make a folder that goes again

[[noreturn]] void refused(const std::string& path) { fail(EL_FILE, "%.160s: %s", path.c_str(), std::strerror(errno)); }

// -1 where it cannot be opened.
int try_open(const std::string& path, int flags) {
  int handle;
  // O_NONBLOCK: a pipe under that name would be waited for.
  do handle = open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  while (handle < 0 && errno == EINTR);
  return handle;
}

int opened(const std::string& path, int flags) {
  const int handle = try_open(path, flags);
  if (handle < 0) refused(path);
  return handle;
}

// Has another process the lock?
bool taken(int folder) { return flock(folder, LOCK_EX | LOCK_NB) != 0 && (errno == EWOULDBLOCK || errno == EACCES); }

bool is_at(int folder, const std::string& path) {
  struct stat here, there;
  return fstat(folder, &here) == 0 && lstat(path.c_str(), &there) == 0 && here.st_ino == there.st_ino &&
         here.st_dev == there.st_dev;
}

}  // namespace

OpenFile::OpenFile(const std::string& path, How how) : path_(path) {
  const int handle = opened(path, how == How::write ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY);
  struct stat about;
  if (fstat(handle, &about) != 0 || !S_ISREG(about.st_mode)) {
    close(handle);
    fail(EL_FILE, "%.160s is no file", path.c_str());
  }
  handle_ = handle;
}

OpenFile::~OpenFile() { close(int(handle_)); }

uint64_t OpenFile::size() const {
  struct stat about;
  if (fstat(int(handle_), &about) != 0) refused(path_);
  return uint64_t(about.st_size);
}

void OpenFile::read(void* data, size_t count, uint64_t offset) const {
  for (char* to = static_cast<char*>(data); count;) {
    const ssize_t got = pread(int(handle_), to, count, off_t(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refused(path_);
    if (got == 0) fail(EL_FORMAT, "%.160s ends too early; copy it again", path_.c_str());
    to += got, count -= size_t(got), offset += uint64_t(got);
  }
}

void OpenFile::write(const void* data, size_t count) const {
  for (const char* from = static_cast<const char*>(data); count;) {
    const ssize_t put = ::write(int(handle_), from, count);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) refused(path_);
    from += put, count -= size_t(put);
  }
}

void OpenFile::sync() const {
  if (fsync(int(handle_)) != 0) refused(path_);
}

// The lock is the folder's own: it goes with the process, and leaves nothing in the folder.
LockedFolder::LockedFolder(const std::string& path) : path_(path) {
  for (int tries = 0; tries < TRIES; tries++) {
    make_folder(path);
    const int folder = try_open(path, O_RDONLY | O_DIRECTORY);
    if (folder < 0 && errno == ENOENT) continue;  // the process that had it has just removed it
    if (folder < 0) refused(path);
    if (taken(folder)) {
      close(folder);
      fail(EL_USAGE, "%.160s: another process updates this bundle; wait for it", path.c_str());
    }
    if (is_at(folder, path)) {
      handle_ = folder;
      return;
    }
    close(folder);  // removed, too
  }
  fail(EL_FILE, "%.160s does not stay there", path.c_str());
}

LockedFolder::~LockedFolder() { close(int(handle_)); }

void LockedFolder::remove() { remove_tree(path_); }

Kind kind_of(const std::string& path) {
  struct stat about;
  if (lstat(path.c_str(), &about) != 0) return Kind::none;
  return S_ISREG(about.st_mode) ? Kind::file : S_ISDIR(about.st_mode) ? Kind::folder : Kind::other;
}

uint64_t size_of(const std::string& path) {
  struct stat about;
  if (lstat(path.c_str(), &about) != 0) refused(path);
  return uint64_t(about.st_size);
}

std::string real_path(const char* path) {
  std::string given(path), last;
  while (given.size() > 1 && given.back() == '/') given.pop_back();
  char* found = realpath(given.c_str(), nullptr);
  if (!found && errno == ENOENT) {  // it may be between two names
    const size_t slash = given.rfind('/');
    last = slash == std::string::npos ? given : given.substr(slash + 1);
    found = realpath(slash == std::string::npos ? "." : slash == 0 ? "/" : given.substr(0, slash).c_str(), nullptr);
  }
  if (!found) refused(given);
  std::string real(found);
  std::free(found);
  if (!last.empty()) real += (real.back() == '/' ? "" : "/") + last;
  return real;
}

std::vector<Entry> entries_of(const std::string& folder) {
  DIR* list = opendir(folder.c_str());
  if (!list) refused(folder);
  std::vector<Entry> found;
  while (const dirent* entry = readdir(list))
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) found.push_back({entry->d_name, Kind::none});
  closedir(list);
  for (Entry& entry : found) entry.kind = kind_of(inside(folder, entry.name));
  return found;
}

void make_folder(const std::string& path) {
  for (int tries = 0; mkdir(path.c_str(), 0777) != 0; tries++) {
    const int reason = errno;
    const Kind kind = reason == EEXIST ? kind_of(path) : Kind::other;
    if (kind == Kind::folder) return;
    if (kind == Kind::none && tries < TRIES) continue;  // another process has just removed it
    errno = reason;
    refused(path);
  }
}

void rename_to(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) refused(to);
}

bool exchange(const std::string& one, const std::string& other) {
#if defined(__linux__)
  if (!edgeloop_renameat2) return false;
  const unsigned RENAME_BOTH = 2;  // RENAME_EXCHANGE of linux/fs.h
  if (edgeloop_renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_BOTH) == 0) return true;
#elif defined(__APPLE__)
  if (renamex_np(one.c_str(), other.c_str(), RENAME_SWAP) == 0) return true;
#else
  errno = ENOSYS;
#endif
  if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP || errno == EOPNOTSUPP) return false;
  refused(other);
}

bool link_to(const std::string& from, const std::string& to) { return link(from.c_str(), to.c_str()) == 0; }

void remove_file(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT) refused(path);
}

void discard(const std::string& path, Kind kind) { kind == Kind::folder ? rmdir(path.c_str()) : unlink(path.c_str()); }

void sync_folder(const std::string& path) {
  const int folder = opened(path, O_RDONLY | O_DIRECTORY);
  const bool done = fsync(folder) == 0;
  const int reason = errno;
  close(folder);
  errno = reason;
  if (!done) refused(path);
}

uint64_t free_bytes(const std::string& path) {
  struct statvfs about;
  if (statvfs(path.c_str(), &about) != 0) refused(path);
  return uint64_t(about.f_bavail) * uint64_t(about.f_frsize);
}

}  // namespace edgeloop::update

#endif
