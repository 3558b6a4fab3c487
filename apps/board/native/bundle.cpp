// What lies in a bundle's folder: manifest.json and layout.json, of which single values are looked up, and the embedding.
#include "bundle.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

namespace edgeloop::pte {

namespace {

constexpr int FORMAT = 4;       // of manifest.json, as runtime/bundle/manifest.py has it
constexpr size_t ENDS = 4096;   // as runtime/engines/executorch/layout.py has it
constexpr int MOST = 1 << 24;   // of any size

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Problem(path + " cannot be read; give the folder of a bundle");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The value behind "key":. The files are ours, and their keys are unique where this is used.
std::string value(const std::string& json, const std::string& key) {
  size_t at = json.find("\"" + key + "\":");
  if (at != std::string::npos) at = json.find_first_not_of(" \"", at + key.size() + 3);
  if (at == std::string::npos) throw Problem("no " + key + " in the bundle; export it again");
  return json.substr(at, json.find_first_of(",\"\n}", at) - at);
}

// The strings of the list behind "key":.
std::vector<std::string> values(const std::string& json, const std::string& key) {
  std::vector<std::string> found;
  size_t at = json.find("\"" + key + "\":"), end = json.find(']', at);
  if (at == std::string::npos || end == std::string::npos) return found;
  for (at = json.find('[', at); (at = json.find('"', at + 1)) < end; at = json.find('"', at + 1))
    found.push_back(json.substr(at + 1, json.find('"', at + 1) - at - 1));
  return found;
}

Sizes sizes_of(const std::string& layout) {
  const auto number = [&](const char* key, int least) {
    const long found = std::strtol(value(layout, key).c_str(), nullptr, 10);
    if (found < least || found > MOST)
      throw Problem("layout.json has " + std::to_string(found) + " as " + key + "; copy the bundle again");
    return int(found);
  };
  Sizes s;
  s.width = number("width", 1), s.vocabulary = number("vocab_size", 1);
  s.kv_heads = number("kv_heads", 0), s.head_dim = number("head_dim", 0);
  s.context = number("context_length", 1), s.depths = number("depths", 1);
  s.rows = number("rows", 1), s.chunk = number("chunk", 1);
  const int dims = number("rope_dims", 0);
  s.turned = dims ? dims : s.head_dim;
  s.theta = std::atof(value(layout, "rope_theta").c_str());
  s.pairs = value(layout, "rope_pairs") == "true";
  s.scale = float(std::atof(value(layout, "embedding_scale").c_str()));
  return s;
}

// Throws a Problem that names what this loop would run wrongly.
void check(const std::string& manifest, const std::string& layout) {
  const std::string format = value(manifest, "format");
  if (format != std::to_string(FORMAT))
    throw Problem("bundle format " + format + ", this runner reads format " + std::to_string(FORMAT) +
                  "; export the checkpoint again");
  std::vector<std::string> beyond = values(layout, "beyond");
  if (value(layout, "routed") != "false") beyond.push_back("a router, which decides how deep each token goes");
  if (value(layout, "shared_kv") != "false") beyond.push_back("K/V that all depths share");
  if (value(layout, "window") != "null") beyond.push_back("a sliding window");
  for (const char* key : {"\"mask\": \"prefix\"", "\"mask\":\"prefix\""})
    if (manifest.find(key) != std::string::npos) beyond.push_back("prompts whose tokens see each other");
  for (const std::string& what : beyond)
    throw Problem("the model has " + what + ", and this runner knows none; use edgeloop run");
}

// CRC-32 as zlib has it.
uint32_t crc32(const char* data, size_t size, uint32_t crc) {
  crc = ~crc;
  for (size_t i = 0; i < size; ++i) {
    crc ^= uint8_t(data[i]);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

}  // namespace

Mapped::Mapped(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat about = {};
  void* found = MAP_FAILED;
  if (file >= 0 && !fstat(file, &about) && about.st_size > 0)
    found = mmap(nullptr, size_t(about.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  if (file >= 0) ::close(file);
  if (found == MAP_FAILED) throw Problem(path + " cannot be read; copy the bundle again");
  data = static_cast<const char*>(found), size = size_t(about.st_size);
}

Mapped::~Mapped() { munmap(const_cast<char*>(data), size); }

Bundle::Bundle(const std::string& folder) : folder_(folder + "/executorch"), text_(folder + "/text.lanes") {
  const std::string manifest = read(folder + "/manifest.json"), layout = read(folder_ + "/layout.json");
  check(manifest, layout);
  sizes_ = sizes_of(layout);
  program_ = folder_ + "/" + value(layout, "program");
  for (const std::string& name : values(layout, "data")) data_.push_back(folder_ + "/" + name);

  table_ = std::make_unique<Mapped>(folder_ + "/" + value(layout, "file"));
  kind_ = value(layout, "kind");
  half_ = value(layout, "scale_type") == "bfloat16";
  values_ = std::strtoull(value(layout, "values").c_str(), nullptr, 10);
  scales_ = std::strtoull(value(layout, "scales").c_str(), nullptr, 10);
  groups_ = std::strtoull(value(layout, "groups").c_str(), nullptr, 10);
  const bool plain = kind_ == "float32";
  const size_t width = size_t(sizes_.width), rows = size_t(sizes_.vocabulary);
  if (!plain && (groups_ == 0 || width % groups_ != 0 || (kind_ == "int4" && width % 2 != 0)))
    throw Problem("layout.json has rows of " + std::to_string(width) + " numbers in " + std::to_string(groups_) +
                  " groups; copy the bundle again");
  uint32_t crc = ends(values_, rows * (plain ? 4 * width : kind_ == "int4" ? width / 2 : width), 0);
  if (!plain) crc = ends(scales_, rows * groups_ * (half_ ? 2 : 4), crc);
  if (std::to_string(crc) != value(layout, "check"))
    throw Problem(value(layout, "file") + ": the embedding is not where layout.json has it; they come from two exports, "
                  "copy the bundle again");
}

uint32_t Bundle::ends(size_t start, size_t size, uint32_t crc) const {
  if (start > table_->size || size > table_->size - start)
    throw Problem("the file of the embedding ends too early; copy the bundle again");
  const size_t part = size < ENDS ? size : ENDS;
  return crc32(table_->data + start + size - part, part, crc32(table_->data + start, part, crc));
}

void Bundle::row(int64_t id, float* out) const {
  const char* base = table_->data + values_;
  const size_t width = size_t(sizes_.width), first = size_t(id) * width;
  if (kind_ == "float32") {
    std::memcpy(out, base + 4 * first, 4 * width);
    for (size_t i = 0; i < width; ++i) out[i] *= sizes_.scale;
    return;
  }
  for (size_t i = 0; i < width; ++i) {
    const size_t group = size_t(id) * groups_ + i / (width / groups_);
    float scale;
    uint32_t bits = 0;
    if (half_) std::memcpy(reinterpret_cast<char*>(&bits) + 2, table_->data + scales_ + 2 * group, 2);
    else std::memcpy(&bits, table_->data + scales_ + 4 * group, 4);
    std::memcpy(&scale, &bits, 4);
    const int code = kind_ == "int4" ? ((uint8_t(base[(first + i) / 2]) >> (i % 2 * 4)) & 15) - 8 : int(int8_t(base[first + i]));
    out[i] = code * scale * sizes_.scale;
  }
}

}  // namespace edgeloop::pte
