#include "saved_arrays.h"

#include <cerrno>
#include <cmath>
#include <cstring>

#include "../error.h"
#include "../platform.h"

namespace edgeloop::context {

namespace {

constexpr size_t MOST_HEADER = size_t(64) << 20;
constexpr double MOST_BYTES = 1e15;
constexpr char KEY[] = "edgeloop.session", DIGEST[] = "sha256";

size_t size_of(const char* type) { return type[1] == '8' ? 1 : !std::strcmp(type, "F16") ? 2 : 4; }

// A whole number from 0 to MOST_BYTES, or −1.
double whole(const json::Value* value) {
  if (!value || value->kind != json::Value::number) return -1;
  const double x = value->amount;
  return x >= 0 && x <= MOST_BYTES && x == std::floor(x) && value->string.find_first_not_of("0123456789") == std::string::npos ? x : -1;
}

}  // namespace

size_t Array::bytes() const {
  size_t found = size_of(type);
  for (const size_t n : shape) found *= n;
  return found;
}

ArraysWriter::ArraysWriter(const char* path, const std::string& text, const std::vector<Array>& arrays) : path_(path) {
  std::string header = "{\"__metadata__\":{\"" + std::string(KEY) + "\":" + json::quoted(text) + "}";
  size_t end = 0;
  const auto add = [&](const Array& array) {
    header += "," + json::quoted(array.name) + ":{\"dtype\":\"" + array.type + "\",\"shape\":[";
    for (size_t i = 0; i < array.shape.size(); i++) header += (i ? "," : "") + std::to_string(array.shape[i]);
    header += "],\"data_offsets\":[" + std::to_string(end) + "," + std::to_string(end + array.bytes()) + "]}";
    end += array.bytes();
  };
  for (const Array& array : arrays) add(array);
  add({DIGEST, "U8", {Sha256::BYTES}});
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  file_.reset(create_beside(path, fresh_.path));
  uint8_t length[8];
  for (int i = 0; i < 8; i++) length[i] = uint8_t(uint64_t(header.size()) >> (8 * i));
  put(length, sizeof length);
  put(header.data(), header.size());
}

Fresh::~Fresh() {
  if (!path.empty()) remove_file(path.c_str());
}

void ArraysWriter::failed() const { fail(EL_FILE, "%.160s cannot be written: %s", path_.c_str(), std::strerror(errno)); }

void ArraysWriter::put(const void* bytes, size_t count) {
  hash_.add(bytes, count);
  if (count && std::fwrite(bytes, 1, count, file_.get()) != count) failed();
}

void ArraysWriter::finish() {
  uint8_t digest[Sha256::BYTES];
  hash_.finish(digest);
  if (std::fwrite(digest, 1, sizeof digest, file_.get()) != sizeof digest) failed();
  const bool flushed = flush_to_disk(file_.get());
  if (std::fclose(file_.release()) || !flushed || !replace_file(fresh_.path.c_str(), path_.c_str())) failed();
  fresh_.path.clear();
}

ArraysReader::ArraysReader(const char* path) : path_(path) {
  std::FILE* file = nullptr;
  const double size = open_plain(path, file);
  file_.reset(file);
  uint8_t length[8];
  take(length, sizeof length);
  uint64_t bytes = 0;
  for (int i = 0; i < 8; i++) bytes |= uint64_t(length[i]) << (8 * i);
  if (bytes < 2 || bytes > MOST_HEADER || double(bytes) > size) wrong("it is not a saved session");
  std::string header(bytes, '\0');
  take(header.data(), bytes);
  const json::Value read = json::read(header.data(), header.size());
  if (const json::Value* metadata = read.find("__metadata__"))
    if (const json::Value* found = metadata->find(KEY)) text = found->string;
  if (text.empty()) wrong("it is not a saved session");
  double end = 0;
  for (const auto& member : read.members) {
    if (member.first == "__metadata__") continue;
    const json::Value *type = member.second.find("dtype"), *shape = member.second.find("shape"), *offsets = member.second.find("data_offsets");
    if (!type || !shape || !offsets || offsets->items.size() != 2 || shape->items.size() > 4) wrong("its header cannot be read");
    static const char* const types[] = {"F32", "F16", "I8", "I32", "U8"};
    Entry entry{member.first, type->string, {}};
    double count = 0;
    for (const char* each : types)
      if (entry.type == each) count = double(size_of(each));
    for (const json::Value& n : shape->items) {
      const double x = whole(&n);
      if (x < 0) wrong("its header cannot be read");
      entry.shape.push_back(size_t(x));
      count *= x;
    }
    const double last = whole(&offsets->items[1]);
    if (entry.type.empty() || whole(&offsets->items[0]) != end || last < 0 || last != end + count) wrong("its header cannot be read");
    end = last;
    entries_.push_back(std::move(entry));
  }
  if (8 + double(bytes) + end != size || entries_.empty() || entries_.back().name != DIGEST || entries_.back().type != "U8" ||
      entries_.back().shape != std::vector<size_t>{Sha256::BYTES})
    wrong("it is not as long as its header says");
  entries_.pop_back();
}

void ArraysReader::wrong(const char* why) const { fail(EL_FORMAT, "%.120s: %s; save the session again", path_.c_str(), why); }

void ArraysReader::check(const std::vector<Array>& arrays) const {
  for (size_t i = 0; i < arrays.size() || i < entries_.size(); i++) {
    const bool there = i < arrays.size() && i < entries_.size();
    if (!there || entries_[i].name != arrays[i].name || entries_[i].type != arrays[i].type || entries_[i].shape != arrays[i].shape)
      fail(EL_FORMAT, "%.120s: %.40s is not as this context has it; load it with the el_kv and the engine that it was saved with",
          path_.c_str(), i < arrays.size() ? arrays[i].name.c_str() : "an array more");
  }
}

void ArraysReader::take(void* bytes, size_t count) {
  if (count && std::fread(bytes, 1, count, file_.get()) != count) wrong("it ends too early");
  hash_.add(bytes, count);
}

void ArraysReader::finish() {
  uint8_t wanted[Sha256::BYTES], found[Sha256::BYTES];
  hash_.finish(wanted);
  if (std::fread(found, 1, sizeof found, file_.get()) != sizeof found || std::memcmp(wanted, found, sizeof found))
    wrong("its SHA-256 is another one than it says: it is damaged or was changed");
}

}  // namespace edgeloop::context
