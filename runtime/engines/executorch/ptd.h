// Are the tables of a .ptd file whole? ExecuTorch verifies the tables of a program when asked to, and follows those of a
// .ptd file wherever they point. The schema: extension/flat_tensor/serialize/flat_tensor.fbs of executorch.

#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace edgeloop {

// A FlatBuffer whose every step is checked. Positions are bytes from its beginning; 0 is none.
class Tables {
 public:
  explicit Tables(const std::vector<uint8_t>& bytes) : bytes_(bytes) {}

  template <class T>
  bool read(uint64_t at, T* value) const {
    if (at > bytes_.size() || sizeof(T) > bytes_.size() - at) return false;
    std::memcpy(value, bytes_.data() + at, sizeof(T));
    return true;
  }
  // Where the offset at `at` points to.
  bool follow(uint64_t at, uint64_t* target) const {
    uint32_t step;
    if (!read(at, &step) || !step) return false;
    *target = at + step;
    return *target < bytes_.size();
  }
  // Where field `id` of the table at `table` is; 0 if the table has none. `size`: bytes of its value.
  bool field(uint64_t table, int id, uint64_t size, uint64_t* at) const {
    int32_t back;
    uint16_t length, bytes, offset = 0;
    if (!read(table, &back)) return false;
    const int64_t vtable = static_cast<int64_t>(table) - back;
    if (vtable < 0 || !read(vtable, &length) || !read(vtable + 2, &bytes) || length < 4) return false;
    if (4u + 2 * id + 2 <= length && !read(vtable + 4 + 2 * id, &offset)) return false;
    *at = offset ? table + offset : 0;
    return !offset || (offset >= 4 && offset + size <= bytes && table + bytes <= bytes_.size());
  }
  // The vector that field `id` points to: its first element and their number. `each`: bytes of one.
  bool vector(uint64_t table, int id, uint64_t each, uint64_t* first, uint32_t* count) const {
    uint64_t at;
    *first = *count = 0;
    if (!field(table, id, 4, &at)) return false;
    if (!at) return true;
    if (!follow(at, &at) || !read(at, count)) return false;
    *first = at + 4;
    return *first <= bytes_.size() && *count * each <= bytes_.size() - *first;
  }
  uint8_t byte(uint64_t at) const { return bytes_[at]; }

 private:
  const std::vector<uint8_t>& bytes_;
};

// Why the file at `path` cannot be opened as a .ptd file; empty if it can.
inline std::string damage(const std::string& path) {
  const std::string broken = "its tables are damaged, copy the bundle again";
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return "it cannot be read";
  const uint64_t size = file.tellg();
  std::vector<uint8_t> bytes(size < 64 ? size : 64);
  auto fill = [&] { return file.seekg(0) && file.read(reinterpret_cast<char*>(bytes.data()), bytes.size()); };
  uint64_t start, length, base, data;
  uint32_t header;
  const Tables head(bytes);
  if (!fill() || bytes.size() < 48 || std::memcmp(bytes.data() + 4, "FT01FH01", 8)) return "it is no .ptd file";
  head.read(12, &header), head.read(16, &start), head.read(24, &length), head.read(32, &base), head.read(40, &data);
  if (header != 40 || start > size || length > size - start || base > size || data > size - base) return broken;
  bytes.resize(start + length);
  if (!fill()) return "it cannot be read";

  const Tables tables(bytes);
  uint64_t root, segments, names;
  uint32_t pieces, count;
  if (!tables.follow(0, &root) || !tables.vector(root, 1, 4, &segments, &pieces) ||
      !tables.vector(root, 2, 4, &names, &count))
    return broken;
  for (uint32_t i = 0; i < pieces; ++i) {
    uint64_t table, at[2], value[2] = {0, 0};
    if (!tables.follow(segments + 4 * uint64_t(i), &table)) return broken;
    for (int id = 0; id < 2; ++id)
      if (!tables.field(table, id, 8, &at[id]) || (at[id] && !tables.read(at[id], &value[id]))) return broken;
    if (value[0] > data || value[1] > data - value[0]) return broken;
  }
  for (uint32_t i = 0; i < count; ++i) {
    uint64_t table, key, at, layout;
    uint32_t letters, piece = 0;
    if (!tables.follow(names + 4 * uint64_t(i), &table) || !tables.vector(table, 0, 1, &key, &letters) || !letters ||
        key + letters >= bytes.size() || tables.byte(key + letters) || !tables.field(table, 1, 4, &at) ||
        (at && !tables.read(at, &piece)) || piece >= pieces || !tables.field(table, 2, 4, &layout) || layout)
      return broken;  // a layout is of tensors; weights of delegates have none
  }
  return "";
}

}  // namespace edgeloop
