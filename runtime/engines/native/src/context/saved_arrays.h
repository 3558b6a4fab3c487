// The file of a saved session: arrays and a text, as runtime/context/arrays_file.py has them, with a hash of all at the end.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "../json.h"
#include "../sha256.h"

namespace edgeloop::context {

struct Array {
  std::string name;
  const char* type;  // "F32", "F16", "I8", "I32", "U8"
  std::vector<size_t> shape;
  size_t bytes() const;
};

struct Closing {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Closing>;

// A file that goes at the end of its life, unless it has another name by then.
struct Fresh {
  std::string path;
  ~Fresh();
};

// A new file that takes the place of `path` once it is whole. Throws EL_FILE.
class ArraysWriter {
 public:
  ArraysWriter(const char* path, const std::string& text, const std::vector<Array>& arrays);
  void put(const void* bytes, size_t count);
  void finish();

 private:
  [[noreturn]] void failed() const;
  std::string path_;
  Fresh fresh_;  // nothing is left of a file that was not finished
  File file_;
  Sha256 hash_;
};

// Throws EL_FILE, or EL_FORMAT for what is no such file.
class ArraysReader {
 public:
  explicit ArraysReader(const char* path);

  std::string text;
  // Throws unless the arrays are these, in this order.
  void check(const std::vector<Array>& arrays) const;
  void take(void* bytes, size_t count);
  void finish();
  [[noreturn]] void wrong(const char* why) const;

 private:
  struct Entry {
    std::string name, type;
    std::vector<size_t> shape;
  };
  std::string path_;
  File file_;
  Sha256 hash_;
  std::vector<Entry> entries_;
};

}  // namespace edgeloop::context
