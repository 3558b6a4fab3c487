#include "disk.h"

#include <algorithm>

#include "../error.h"
#include "../sha256.h"

namespace edgeloop::update {

std::string inside(const std::string& folder, const std::string& name) { return folder + "/" + name; }

void make_folders(const std::string& root, const std::string& name) {
  for (size_t at = name.find('/'); at != std::string::npos; at = name.find('/', at + 1))
    make_folder(inside(root, name.substr(0, at)));
}

void remove_tree(const std::string& path) {
  std::vector<std::string> folders{path};  // every folder before those that lie in it
  const Kind kind = kind_of(path);
  if (kind == Kind::none) return;
  if (kind != Kind::folder) return discard(path, kind);
  walk(path, true, [&](const std::string& name, Kind found) {
    if (found == Kind::folder) folders.push_back(inside(path, name));
    else discard(inside(path, name), found);
  });
  for (size_t i = folders.size(); i--;) discard(folders[i], Kind::folder);
}

void walk(const std::string& folder, bool folders, const std::function<void(const std::string& name, Kind kind)>& each) {
  std::vector<std::string> open{""};  // folders that were not read yet
  while (!open.empty()) {
    const std::string within = std::move(open.back());
    open.pop_back();
    for (const Entry& entry : entries_of(within.empty() ? folder : inside(folder, within))) {
      const std::string name = within.empty() ? entry.name : inside(within, entry.name);
      if (entry.kind == Kind::folder) open.push_back(name);
      if (entry.kind != Kind::folder || folders) each(name, entry.kind);
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
