#if !defined(_WIN32)

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "error.h"
#include "platform.h"

namespace edgeloop {

MappedFile map_file(const char* path) {
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(EL_FILE, "%.160s: %s", path, std::strerror(errno));
  struct stat about;
  const bool known = fstat(file, &about) == 0;
  if (!known || !S_ISREG(about.st_mode)) {
    close(file);
    fail(EL_FILE, "%.160s is no file", path);
  }
  const size_t size = size_t(about.st_size);
  void* memory = size ? mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0) : nullptr;
  const int reason = errno;
  close(file);
  if (memory == MAP_FAILED) fail(EL_FILE, "%.160s: %s", path, std::strerror(reason));
  if (!memory) return {};
#ifdef MADV_HUGEPAGE
  madvise(memory, size, MADV_HUGEPAGE);  // fewer page walks, on file systems that can; elsewhere it is refused
#endif
  madvise(memory, size, MADV_WILLNEED);
  return {static_cast<const uint8_t*>(memory), size};
}

void unmap_file(const MappedFile& file) {
  if (file.bytes) munmap(const_cast<uint8_t*>(file.bytes), file.size);
}

double open_plain(const char* path, std::FILE*& file) {
  const int number = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe would be waited for
  if (number < 0) fail(EL_FILE, "%.160s: %s", path, std::strerror(errno));
  struct stat about;
  const bool plain = fstat(number, &about) == 0 && S_ISREG(about.st_mode);
  file = plain ? fdopen(number, "rb") : nullptr;
  if (!file) {
    close(number);
    fail(EL_FILE, "%.160s is no plain file", path);
  }
  return double(about.st_size);
}

std::FILE* create_beside(const char* path, std::string& fresh) {
  struct stat about;
  if (!stat(path, &about) && !S_ISREG(about.st_mode)) fail(EL_FILE, "%.160s is no plain file; choose another place", path);
  const std::string whole = path;
  const size_t slash = whole.rfind('/'), name = slash == std::string::npos ? 0 : slash + 1;
  fresh = whole.substr(0, name) + "." + whole.substr(name) + ".XXXXXX";
  const int number = mkstemp(fresh.data());
  std::FILE* file = number < 0 ? nullptr : fdopen(number, "wb");
  if (!file) {
    const int reason = errno;
    if (number >= 0) close(number), ::unlink(fresh.c_str());
    fresh.clear();
    fail(EL_FILE, "%.160s cannot be written: %s", path, std::strerror(reason));
  }
  return file;
}

bool flush_to_disk(std::FILE* file) { return !std::fflush(file) && !fsync(fileno(file)); }

bool replace_file(const char* fresh, const char* path) {
  if (std::rename(fresh, path)) return false;
  const std::string whole = path;
  const size_t slash = whole.rfind('/');
  const int folder = ::open(slash == std::string::npos ? "." : slash ? whole.substr(0, slash).c_str() : "/", O_RDONLY | O_CLOEXEC);
  if (folder >= 0) fsync(folder), close(folder);  // the name is on the disk, too
  return true;
}

void remove_file(const char* path) { ::unlink(path); }

void* allocate_aligned(size_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, MEMORY_ALIGNMENT, bytes) ? nullptr : memory;
}

void free_aligned(void* memory) { std::free(memory); }

}  // namespace edgeloop

#endif
