#if !defined(_WIN32)

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../error.h"
#include "../sha256.h"
#include "disk.h"

#if defined(__linux__)
// Not in every C library: Android's has it from version 11 on. Null where it is not.
extern "C" int edgeloop_renameat2(int, const char*, int, const char*, unsigned) __asm__("renameat2") __attribute__((weak));
#endif

namespace edgeloop::update {

namespace {

[[noreturn]] void refused(const std::string& path) { fail(EL_FILE, "%.160s: %s", path.c_str(), std::strerror(errno)); }

}  // namespace

OpenFile::OpenFile(const std::string& path, How how) : path_(path) {
  const int flags = how == How::write ? O_WRONLY | O_CREAT | O_TRUNC : how == How::folder ? O_RDONLY | O_DIRECTORY : O_RDONLY;
  // O_NONBLOCK: a pipe under that name would be waited for.
  do handle_ = open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  while (handle_ < 0 && errno == EINTR);
  if (handle_ < 0) refused(path);
  struct stat about;
  if (how != How::folder && (fstat(handle_, &about) != 0 || !S_ISREG(about.st_mode))) {
    close(handle_);
    fail(EL_FILE, "%.160s is no file", path.c_str());
  }
}

OpenFile::~OpenFile() { close(handle_); }

uint64_t OpenFile::size() const {
  struct stat about;
  if (fstat(handle_, &about) != 0) refused(path_);
  return uint64_t(about.st_size);
}

void OpenFile::read(void* data, size_t count, uint64_t offset) const {
  for (char* to = static_cast<char*>(data); count;) {
    const ssize_t got = pread(handle_, to, count, off_t(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refused(path_);
    if (got == 0) fail(EL_FORMAT, "%.160s ends too early; copy it again", path_.c_str());
    to += got, count -= size_t(got), offset += uint64_t(got);
  }
}

void OpenFile::write(const void* data, size_t count) const {
  for (const char* from = static_cast<const char*>(data); count;) {
    const ssize_t put = ::write(handle_, from, count);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) refused(path_);
    from += put, count -= size_t(put);
  }
}

void OpenFile::sync() const {
  if (fsync(handle_) != 0) refused(path_);
}

bool OpenFile::lock() const { return flock(handle_, LOCK_EX | LOCK_NB) == 0 || (errno != EWOULDBLOCK && errno != EACCES); }

bool OpenFile::is_at(const std::string& path) const {
  struct stat here, there;
  return fstat(handle_, &here) == 0 && lstat(path.c_str(), &there) == 0 && here.st_ino == there.st_ino &&
         here.st_dev == there.st_dev;
}

std::string inside(const std::string& folder, const std::string& name) { return folder + "/" + name; }

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

void make_folder(const std::string& path) {
  if (mkdir(path.c_str(), 0777) != 0 && (errno != EEXIST || kind_of(path) != Kind::folder)) refused(path);
}

void make_folders(const std::string& root, const std::string& name) {
  for (size_t at = name.find('/'); at != std::string::npos; at = name.find('/', at + 1))
    make_folder(inside(root, name.substr(0, at)));
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

void remove_tree(const std::string& path) {
  std::vector<std::string> folders{""};  // every folder before those that lie in it
  const Kind kind = kind_of(path);
  if (kind == Kind::none) return;
  if (kind != Kind::folder) {
    unlink(path.c_str());
    return;
  }
  walk(path, true, [&](const std::string& name, Kind found) {
    if (found == Kind::folder) folders.push_back("/" + name);
    else unlink(inside(path, name).c_str());
  });
  while (!folders.empty()) {
    rmdir((path + folders.back()).c_str());
    folders.pop_back();
  }
}

void sync_folder(const std::string& path) { OpenFile(path, OpenFile::How::folder).sync(); }

uint64_t free_bytes(const std::string& path) {
  struct statvfs about;
  if (statvfs(path.c_str(), &about) != 0) refused(path);
  return uint64_t(about.f_bavail) * uint64_t(about.f_frsize);
}

void walk(const std::string& folder, bool folders, const std::function<void(const std::string& name, Kind kind)>& each) {
  std::vector<std::string> open{""};  // folders that were not read yet, with a / behind them
  while (!open.empty()) {
    const std::string within = std::move(open.back());
    open.pop_back();
    const std::string place = inside(folder, within);
    DIR* list = opendir(place.c_str());
    if (!list) refused(place);
    std::vector<std::string> names;
    while (const dirent* entry = readdir(list))
      if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) names.push_back(within + entry->d_name);
    closedir(list);
    for (const std::string& name : names) {
      const Kind kind = kind_of(inside(folder, name));
      if (kind == Kind::folder) open.push_back(name + "/");
      if (kind != Kind::folder || folders) each(name, kind);
    }
  }
}

void sha256_of(const std::string& path, uint8_t digest[32]) {
  const OpenFile file(path, OpenFile::How::read);
  std::vector<uint8_t> piece(1 << 18);
  Sha256 sum;
  const uint64_t size = file.size();
  for (uint64_t at = 0; at < size;) {
    const size_t count = size_t(std::min<uint64_t>(piece.size(), size - at));
    file.read(piece.data(), count, at);
    sum.add(piece.data(), count);
    at += count;
  }
  sum.finish(digest);
}

std::vector<uint8_t> read_all(const std::string& path, uint64_t most) {
  const OpenFile file(path, OpenFile::How::read);
  const uint64_t size = file.size();
  if (size > most) fail(EL_FORMAT, "%.160s has %llu bytes, wanted %llu at most", path.c_str(), (unsigned long long)size, (unsigned long long)most);
  std::vector<uint8_t> found(static_cast<size_t>(size));
  file.read(found.data(), found.size(), 0);
  return found;
}

}  // namespace edgeloop::update

#endif
