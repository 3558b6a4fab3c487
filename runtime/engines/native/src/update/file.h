// The file of an update, as runtime/update/format.py describes it: its tables, of which every number is checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgeloop::update {

constexpr size_t SHA_BYTES = 32, SIGNATURE_BYTES = 64, HEADER_BYTES = 64;
constexpr const char* MANIFEST = "manifest.json";

struct Listed {
  std::string name;
  uint64_t size;
  const uint8_t* sha256;  // in the tables
  uint32_t first_copy, copies;
};

struct Copy {
  uint32_t source;  // an old file, or FROM_PART
  uint32_t part;
  uint64_t offset, bytes;
};
constexpr uint32_t FROM_PART = 0xffffffff;

struct Part {
  uint64_t start, bytes;  // in the file
  const uint8_t* sha256;
};

struct Tables {
  std::vector<uint8_t> bytes;  // header and tables: what is signed
  std::vector<Listed> old_files, new_files;
  std::vector<Part> parts;
  std::vector<Copy> copies;

  const uint8_t* old_manifest = nullptr;
  const uint8_t* new_manifest = nullptr;
  // The old file that the new one is, byte for byte, or FROM_PART.
  uint32_t unchanged(const Listed& file) const;
};

// How many bytes header and tables have, by the header alone. Throws an Error.
uint64_t tables_bytes(const uint8_t* header, size_t count, uint64_t file_bytes);
// `bytes` are header and tables of a file of `file_bytes` bytes.
Tables read_tables(std::vector<uint8_t> bytes, uint64_t file_bytes);

// Is `name` a path with / that stays in its folder on every system?
bool is_plain(const std::string& name);

// A line of SHA256SUMS.
struct Sum {
  std::string name;
  uint8_t sha256[SHA_BYTES];
};
// Names ascend. Throws an Error.
std::vector<Sum> read_sums(const std::vector<uint8_t>& text);

}  // namespace edgeloop::update
