// What every system does in its own way: platform_posix.cpp, platform_windows.cpp. Files of updates are in update/disk.h, threads and
// the processors that they run on in threads.cpp, how a processor is asked what it runs in kernels/processor.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

namespace edgeloop {

struct MappedFile {
  const uint8_t* bytes = nullptr;  // null: the file is empty
  size_t size = 0;
};

// A file, its name in UTF-8, to be read where it lies. Throws an Error (EL_FILE) with its name and the system's reason.
MappedFile map_file(const char* path);
void unmap_file(const MappedFile& file);

// A plain file, opened to be read → its bytes. Throws an Error (EL_FILE).
double open_plain(const char* path, std::FILE*& file);
// A new file in the folder of `path`, opened to be written, and its name in `fresh`. Throws an Error (EL_FILE).
std::FILE* create_beside(const char* path, std::string& fresh);
bool flush_to_disk(std::FILE* file);
// `fresh` becomes `path`, in one step; what was there before goes. False where the system refuses (errno).
bool replace_file(const char* fresh, const char* path);
void remove_file(const char* path);

constexpr size_t MEMORY_ALIGNMENT = 64;
// Null where there is no memory.
void* allocate_aligned(size_t bytes);
void free_aligned(void* memory);  // null is fine

}  // namespace edgeloop
