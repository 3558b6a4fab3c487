// A bundle's folder as this runner reads it: sizes, the files of the program, and rows of its embedding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgeloop::pte {

// What goes wrong, in one line, and the exit code: 2 for what no option is.
struct Problem : std::runtime_error {
  Problem(int code, const std::string& line) : std::runtime_error(line), code(code) {}
  explicit Problem(const std::string& line) : Problem(1, line) {}
  int code;
};

// Sizes of the model, as layout.json has them (`Sizes` and `Shapes` in runtime/engines/executorch/layout.py).
struct Sizes {
  int width, vocabulary, kv_heads, head_dim, context, depths, turned;
  int rows, chunk;  // of the largest mN method, and of the prefill methods
  bool pairs;       // do neighbours turn against each other, or halves?
  double theta;
  float scale;  // of the embedding
};

// A file, read where it lies. Throws a Problem.
class Mapped {
 public:
  explicit Mapped(const std::string& path);
  ~Mapped();
  Mapped(const Mapped&) = delete;
  const char* data = nullptr;
  size_t size = 0;
};

class Bundle {
 public:
  // Throws a Problem for a folder that is none, or whose model this runner would run wrongly: it says what the model has.
  explicit Bundle(const std::string& folder);

  const Sizes& sizes() const { return sizes_; }
  const std::string& program() const { return program_; }           // the .pte
  const std::vector<std::string>& data() const { return data_; }    // .ptd files
  const std::string& text() const { return text_; }                 // text.lanes, which need not be there
  // The embedding of token `id`, [width].
  void row(int64_t id, float* out) const;

 private:
  // The first and the last bytes of a part of the embedding's file, in a checksum.
  uint32_t ends(size_t start, size_t size, uint32_t crc) const;

  std::string folder_, text_, program_;
  std::vector<std::string> data_;
  Sizes sizes_;
  std::unique_ptr<Mapped> table_;  // the file with the embedding
  std::string kind_;               // how it is stored
  size_t values_, scales_, groups_;
  bool half_;  // scales are bfloat16
};

}  // namespace edgeloop::pte
