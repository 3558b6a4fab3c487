// The file system, as an update uses it: disk_posix.cpp, disk_windows.cpp, and in disk.cpp what is made of these. Paths are
// UTF-8 with / between names, on every system; no function follows a link in the last place of a path but `real_path`. What
// fails is an Error (EL_FILE) with the path and the system's reason.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace edgeloop::update {

class OpenFile {
 public:
  enum class How { read, write };
  OpenFile(const std::string& path, How how);  // a plain file; `write`: an empty one, which is made if it is not there
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  uint64_t size() const;
  // Exactly `count` bytes from `offset` on.
  void read(void* data, size_t count, uint64_t offset) const;
  void write(const void* data, size_t count) const;
  void sync() const;

 private:
  std::string path_;
  intptr_t handle_;
};

// A folder, made if it is not there, that one process at a time has: EL_USAGE where another has it. Where the file system
// has no locks everyone gets it.
class LockedFolder {
 public:
  explicit LockedFolder(const std::string& path);
  ~LockedFolder();
  LockedFolder(const LockedFolder&) = delete;
  // The folder goes, with what is in it.
  void remove();

 private:
  std::string path_;
  intptr_t handle_ = -1;
};

// ---- what each system does in its own way -------------------------------------------------------------------------

enum class Kind { none, file, folder, other };
struct Entry {
  std::string name;
  Kind kind;
};

Kind kind_of(const std::string& path);
uint64_t size_of(const std::string& path);
std::string real_path(const char* path);  // of a folder that is there, or whose own folder is
std::vector<Entry> entries_of(const std::string& folder);
void make_folder(const std::string& path);  // one that is there is fine
void rename_to(const std::string& from, const std::string& to);
bool exchange(const std::string& one, const std::string& other);  // false: this system cannot
bool link_to(const std::string& from, const std::string& to);     // false: this file system cannot
void remove_file(const std::string& path);                        // one that is not there is fine
void discard(const std::string& path, Kind kind);                 // a file or an empty folder; what cannot go stays
void sync_folder(const std::string& path);
uint64_t free_bytes(const std::string& path);

// ---- what is made of that -----------------------------------------------------------------------------------------

std::string inside(const std::string& folder, const std::string& name);
void make_folders(const std::string& root, const std::string& name);  // those that the file `name` lies in
void remove_tree(const std::string& path);                            // what cannot go stays
// Every file below `folder`, and every folder with `folders`, by its path in it.
void walk(const std::string& folder, bool folders, const std::function<void(const std::string& name, Kind kind)>& each);
void sha256_of(const std::string& path, uint8_t digest[32]);
std::vector<uint8_t> read_all(const std::string& path, uint64_t most);

}  // namespace edgeloop::update
