#include "file.h"

#include <cstring>

#include "../error.h"

namespace edgeloop::update {

namespace {

// Records as they lie in a file, little-endian as every processor that this is compiled for.
struct Header {
  char magic[8];
  uint32_t version, header_bytes;
  uint64_t tables_bytes, file_bytes;
  uint32_t old_files, new_files, parts, copies, names_bytes, unused[3];
};
struct FileRecord {
  uint32_t name, name_bytes;
  uint64_t bytes;
  uint8_t sha256[SHA_BYTES];
  uint32_t first_copy, copies;
};
struct PartRecord {
  uint64_t bytes;
  uint8_t sha256[SHA_BYTES];
};
static_assert(sizeof(Header) == HEADER_BYTES && sizeof(FileRecord) == 56 && sizeof(PartRecord) == 40 && sizeof(Copy) == 24,
              "as format.py has them");

constexpr uint32_t VERSION = 1, MOST_FILES = 4096, MOST_RECORDS = 1 << 20, MOST_NAMES = 1 << 20, MOST_NAME = 1024;
constexpr uint64_t PART_BYTES = 4 << 20, MOST_BYTES = uint64_t(1) << 48, GROWTH = 8;

[[noreturn]] void wrong(const char* what) { fail(EL_FORMAT, "the update %s; copy it again or make it again", what); }

template <class Record>
Record record_at(const std::vector<uint8_t>& bytes, uint64_t at) {
  Record found;
  std::memcpy(&found, bytes.data() + at, sizeof found);
  return found;
}

// How many bytes the character at `text` has; 0: it is no UTF-8.
size_t character(const uint8_t* text, size_t left) {
  const uint8_t first = text[0];
  const size_t length = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : (first & 0xf0) == 0xe0 ? 3
                        : first >= 0xf0 && first < 0xf5 ? 4 : 0;
  if (!length || length > left) return 0;
  for (size_t i = 1; i < length; i++)
    if ((text[i] & 0xc0) != 0x80) return 0;
  if ((first == 0xe0 && text[1] < 0xa0) || (first == 0xed && text[1] > 0x9f) || (first == 0xf0 && text[1] < 0x90) ||
      (first == 0xf4 && text[1] > 0x8f))
    return 0;
  return length;
}

void check_ascending(const std::vector<Listed>& files) {
  for (size_t i = 1; i < files.size(); i++)
    if (files[i - 1].name >= files[i].name) wrong("lists its files in no order, or one of them twice");
}

const uint8_t* manifest_of(const std::vector<Listed>& files) {
  for (const Listed& file : files)
    if (file.name == MANIFEST) return file.sha256;
  wrong("lists no manifest.json");
}

}  // namespace

bool is_plain(const std::string& name) {
  if (name.empty() || name.size() > MOST_NAME) return false;
  size_t part = 0;  // where the part of the path begins
  for (size_t i = 0; i <= name.size(); i++) {
    if (i < name.size() && name[i] != '/') {
      const uint8_t c = uint8_t(name[i]);
      if (c < 32 || c == '\\' || c == ':') return false;
      continue;
    }
    const size_t length = i - part;
    if (length == 0 || name.compare(part, length, ".") == 0 || name.compare(part, length, "..") == 0) return false;
    part = i + 1;
  }
  const uint8_t* text = reinterpret_cast<const uint8_t*>(name.data());
  for (size_t i = 0; i < name.size();) {
    const size_t length = character(text + i, name.size() - i);
    if (!length) return false;
    i += length;
  }
  return true;
}

uint64_t tables_bytes(const uint8_t* header, size_t count, uint64_t file_bytes) {
  Header h;
  if (count < sizeof h || std::memcmp(header, "EDGEUPDT", 8) != 0)
    fail(EL_FORMAT, "this is no update; give one, which `edgeloop diff` makes");
  std::memcpy(&h, header, sizeof h);
  if (h.version != VERSION || h.header_bytes != sizeof h)
    fail(EL_FORMAT, "an update of version %u, this library reads %u; make it again", h.version, VERSION);
  if (h.old_files > MOST_FILES || h.new_files > MOST_FILES || h.parts > MOST_RECORDS || h.copies > MOST_RECORDS ||
      h.names_bytes > MOST_NAMES || h.unused[0] || h.unused[1] || h.unused[2])
    wrong("has more files, parts or copies than an update may have");
  const uint64_t tables = sizeof h + uint64_t(h.old_files + h.new_files) * sizeof(FileRecord) +
                          uint64_t(h.parts) * sizeof(PartRecord) + uint64_t(h.copies) * sizeof(Copy) + h.names_bytes;
  if (h.tables_bytes != tables || h.file_bytes != file_bytes || file_bytes < tables + SIGNATURE_BYTES)
    wrong("is not as long as its tables say, or they are damaged");
  return tables;
}

uint32_t Tables::unchanged(const Listed& file) const {
  if (file.copies != 1 || copies[file.first_copy].source == FROM_PART) return FROM_PART;
  const Listed& same = old_files[copies[file.first_copy].source];
  const bool equal = same.size == file.size && std::memcmp(same.sha256, file.sha256, SHA_BYTES) == 0;
  return equal ? copies[file.first_copy].source : FROM_PART;
}

Tables read_tables(std::vector<uint8_t> bytes, uint64_t file_bytes) {
  if (bytes.size() < sizeof(Header) || tables_bytes(bytes.data(), bytes.size(), file_bytes) != bytes.size())
    wrong("ends too early");
  Tables found;
  found.bytes = std::move(bytes);
  const std::vector<uint8_t>& b = found.bytes;
  const Header h = record_at<Header>(b, 0);
  const uint32_t files = h.old_files + h.new_files;
  const uint64_t parts = sizeof h + uint64_t(files) * sizeof(FileRecord);
  const uint64_t copies = parts + uint64_t(h.parts) * sizeof(PartRecord);
  const uint64_t names = copies + uint64_t(h.copies) * sizeof(Copy);

  uint64_t name = 0, old_bytes = 0, new_bytes = 0, part_bytes = 0;
  for (uint32_t i = 0; i < files; i++) {
    const uint64_t at = sizeof h + uint64_t(i) * sizeof(FileRecord);
    const FileRecord r = record_at<FileRecord>(b, at);
    if (r.name != name || r.name_bytes > h.names_bytes - name) wrong("has names that do not lie behind each other");
    std::string text(reinterpret_cast<const char*>(b.data() + names + name), r.name_bytes);
    name += r.name_bytes;
    if (!is_plain(text)) wrong("has a file name that is no plain path inside a bundle");
    if (r.bytes > MOST_BYTES) wrong("has more bytes than a file may have");
    const bool old = i < h.old_files;
    if (old && (r.first_copy || r.copies)) wrong("has copies of the old bundle's files");
    (old ? old_bytes : new_bytes) += r.bytes;
    (old ? found.old_files : found.new_files)
        .push_back({std::move(text), r.bytes, b.data() + at + offsetof(FileRecord, sha256), r.first_copy, r.copies});
  }
  if (name != h.names_bytes) wrong("has names that do not lie behind each other");
  check_ascending(found.old_files);
  check_ascending(found.new_files);

  const uint64_t start = b.size() + SIGNATURE_BYTES;
  for (uint32_t i = 0; i < h.parts; i++) {
    const uint64_t at = parts + uint64_t(i) * sizeof(PartRecord);
    const uint64_t size = record_at<PartRecord>(b, at).bytes;
    if (size == 0 || size > PART_BYTES) wrong("has a part that is empty or too large");
    found.parts.push_back({start + part_bytes, size, b.data() + at + offsetof(PartRecord, sha256)});
    part_bytes += size;
  }
  if (start + part_bytes != file_bytes) wrong("has parts that do not fill it");

  found.copies.reserve(h.copies);
  for (uint32_t i = 0; i < h.copies; i++) found.copies.push_back(record_at<Copy>(b, copies + uint64_t(i) * sizeof(Copy)));
  uint32_t next = 0;
  for (const Listed& file : found.new_files) {
    if (file.first_copy != next || file.copies > h.copies - next) wrong("has copies that are not those of its files");
    uint64_t total = 0;
    for (uint32_t i = next; i < next + file.copies; i++) {
      const Copy& c = found.copies[i];
      const bool fine = c.source == FROM_PART
                            ? c.part < h.parts && c.offset == 0 && c.bytes == found.parts[c.part].bytes
                            : c.part == 0 && c.source < h.old_files && c.bytes > 0 &&
                                  c.offset <= found.old_files[c.source].size &&
                                  c.bytes <= found.old_files[c.source].size - c.offset;
      if (!fine) wrong("copies what is not there");
      total += c.bytes;  // at most 2^20 of 2^48 bytes, and no copy of a file that is not as large
      if (total > MOST_BYTES) wrong("makes more bytes than a file may have");
    }
    if (total != file.size) wrong("makes other sizes than it lists");
    next += file.copies;
  }
  if (next != h.copies) wrong("has copies that are not those of its files");
  if (new_bytes > GROWTH * (old_bytes + part_bytes)) wrong("makes far more bytes than there are");
  found.old_manifest = manifest_of(found.old_files);
  found.new_manifest = manifest_of(found.new_files);
  if (std::memcmp(found.old_manifest, found.new_manifest, SHA_BYTES) == 0) wrong("changes nothing of the manifest");
  return found;
}

std::vector<Sum> read_sums(const std::vector<uint8_t>& text) {
  std::vector<Sum> found;
  const auto digit = [](uint8_t c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  for (size_t at = 0; at < text.size();) {
    const uint8_t* line = text.data() + at;
    const void* end = std::memchr(line, '\n', text.size() - at);
    const size_t length = end ? size_t(static_cast<const uint8_t*>(end) - line) : 0;
    Sum sum;
    bool fine = length > 66 && line[64] == ' ' && line[65] == ' ';
    for (size_t i = 0; fine && i < SHA_BYTES; i++) {
      const int high = digit(line[2 * i]), low = digit(line[2 * i + 1]);
      fine = high >= 0 && low >= 0;
      if (fine) sum.sha256[i] = uint8_t(high << 4 | low);
    }
    if (fine) sum.name.assign(reinterpret_cast<const char*>(line) + 66, length - 66);
    if (!fine || !is_plain(sum.name) || (!found.empty() && found.back().name >= sum.name) || found.size() == MOST_FILES)
      fail(EL_FORMAT, "SHA256SUMS is not as `edgeloop sign` writes it; sign the bundle again");
    found.push_back(std::move(sum));
    at += length + 1;
  }
  return found;
}

}  // namespace edgeloop::update
