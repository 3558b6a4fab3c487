// The file system, as an update uses it. Paths are UTF-8; no function follows a link in the last place of a path but
// `real_path`. What fails is an Error (EL_FILE) with the path and the system's reason.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace edgeloop::update {

class OpenFile {
 public:
  enum class How { read, write, folder };
  OpenFile(const std::string& path, How how);  // read and write: a plain file
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  uint64_t size() const;
  // Exactly `count` bytes from `offset` on.
  void read(void* data, size_t count, uint64_t offset) const;
  void write(const void* data, size_t count) const;
  void sync() const;
  // False: another process holds the lock. True, too, where there are no locks.
  bool lock() const;
  // Is `path` still this folder?
  bool is_at(const std::string& path) const;

 private:
  std::string path_;
  int handle_;
};

std::string inside(const std::string& folder, const std::string& name);

enum class Kind { none, file, folder, other };
Kind kind_of(const std::string& path);
uint64_t size_of(const std::string& path);
std::string real_path(const char* path);  // of a folder that is there, or whose own folder is
void make_folder(const std::string& path);  // one that is there is fine
void make_folders(const std::string& root, const std::string& name);  // those that the file `name` lies in
void rename_to(const std::string& from, const std::string& to);
bool exchange(const std::string& one, const std::string& other);  // false: this system cannot
bool link_to(const std::string& from, const std::string& to);     // false: this file system cannot
void remove_file(const std::string& path);                        // one that is not there is fine
void remove_tree(const std::string& path);                        // what cannot go stays
void sync_folder(const std::string& path);
uint64_t free_bytes(const std::string& path);
// Every file below `folder`, and every folder with `folders`, by its path in it.
void walk(const std::string& folder, bool folders, const std::function<void(const std::string& name, Kind kind)>& each);

void sha256_of(const std::string& path, uint8_t digest[32]);
std::vector<uint8_t> read_all(const std::string& path, uint64_t most);

}  // namespace edgeloop::update
