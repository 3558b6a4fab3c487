// A model.lanes file, mapped read-only, with every number of its tables checked: what its weights are, as kernels take
// them. What its stages compute is checked where they are compiled (program.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "format.h"
#include "kernels/kernels.h"

namespace edgeloop {

// Records of a table.
template <class T>
struct View {
  const T* data = nullptr;
  size_t count = 0;

  const T& operator[](size_t i) const { return data[i]; }
  const T* begin() const { return data; }
  const T* end() const { return data + count; }
};

// What is added to a part of a matrix at a depth; rank 0: nothing.
struct Delta {
  uint32_t rank = 0;
  Matrix a{}, b{};
  const float* scale = nullptr;  // [rows] or null
};

class Model {
 public:
  // The file at `path`; throws an Error that says what is wrong with it.
  static std::unique_ptr<Model> open(const char* path);
  // The same of bytes in memory, which begin at a multiple of 64 and outlive the model. `whole` false: the checksum is
  // not looked at, for a fuzzer that could not guess it.
  static std::unique_ptr<Model> read(const uint8_t* bytes, size_t size, bool whole = true);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const file::Header& header() const { return *reinterpret_cast<const file::Header*>(bytes_); }
  size_t size() const { return size_; }
  // The text section, of which nothing is checked but where it lies; or no bytes.
  View<uint8_t> text() const { return {bytes_ + header().text, size_t(header().text_bytes)}; }

  View<file::Stage> stages;
  View<file::Op> ops;
  View<uint32_t> operands, values, carries, kept;
  View<file::Depth> schedule;
  View<file::Cache> caches;
  View<file::Matrix> matrices;
  View<file::Part> parts;
  View<file::Vector> vectors;
  View<file::Rotation> rotations;
  View<double> frequencies;

  // Part `part` (counted within `matrix`) of its copy `copy`.
  Matrix part(uint32_t matrix, uint32_t part, uint32_t copy) const;
  // Its bias [rows], or null.
  const float* bias(uint32_t matrix, uint32_t part, uint32_t copy) const;
  // What is added to it at a depth below `depths` of the matrix.
  Delta delta(uint32_t matrix, uint32_t part, uint32_t depth) const;
  // All rows of copy `copy` as one matrix: of those that have one part.
  Matrix whole(uint32_t matrix, uint32_t copy) const { return part(matrix, 0, copy); }
  // Row `row` of a vector that has rows, or the only one.
  const float* vector(uint32_t vector, uint32_t row) const;
  const char* name(uint32_t offset) const { return names_ + offset; }
  const file::Part& part_record(uint32_t matrix, uint32_t part) const {
    return parts[matrices[matrix].first_part + part];
  }
  // Numbers of a state: all carries.
  uint32_t width() const { return width_; }

 private:
  Model(const uint8_t* bytes, size_t size) : bytes_(bytes), size_(size) {}
  void check(bool whole);
  void check_header(bool whole) const;
  template <class T>
  View<T> table(file::TableNumber number, const char* name) const;
  void check_matrix(uint32_t number);
  void check_parts(const file::Matrix& matrix, uint32_t number);
  void check_side(uint64_t data, const file::Part& part, uint32_t rows, uint32_t columns, uint32_t depths) const;
  // A or B of a delta at a depth of `depths`, the first one's tiles at `data`.
  Matrix side(uint64_t data, uint32_t storage, uint32_t rows, uint32_t columns, uint32_t depth, uint32_t depths) const;
  void check_vector(const file::Vector& vector) const;
  void check_rotation(const file::Rotation& rotation) const;
  void check_caches() const;
  const char* name_at(uint32_t offset) const;
  void check_tensor(uint64_t offset, uint64_t bytes, const char* name) const;

  const uint8_t* bytes_;
  size_t size_;
  bool mapped_ = false;
  const char* names_ = nullptr;
  size_t names_size_ = 0;
  uint32_t width_ = 0;
  std::vector<uint32_t> part_tiles_;    // [parts] the first tile of each within its copy
  std::vector<uint32_t> matrix_tiles_;  // [matrices] the tiles of a copy
};

}  // namespace edgeloop
