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

void* allocate_aligned(size_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, MEMORY_ALIGNMENT, bytes) ? nullptr : memory;
}

void free_aligned(void* memory) { std::free(memory); }

}  // namespace edgeloop

#endif
