#include "model.h"

#include <cstring>

#include "error.h"
#include "platform.h"

namespace edgeloop {

using file::filled_up, file::scale_size, file::tile_size, file::TILE;
using file::Header, file::Part, file::Vector;

namespace {

Matrix tiles(const uint8_t* data, const uint8_t* scales, uint32_t rows, uint32_t columns, uint32_t group,
    uint32_t storage) {
  Matrix found;
  found.data = data;
  found.scales = reinterpret_cast<const uint16_t*>(scales);
  found.rows = int32_t(rows);
  found.columns = int32_t(columns);
  found.group = int32_t(group);
  found.kind = Kind(storage);
  return found;
}

}  // namespace

std::unique_ptr<Model> Model::open(const char* path) {
  const MappedFile file = map_file(path);
  std::unique_ptr<Model> model(new Model(file.bytes, file.size));
  model->mapped_ = true;
  if (file.size < sizeof(Header)) fail(EL_FORMAT, "%zu bytes, wanted a model.lanes file", file.size);
  model->check(true);
  return model;
}

std::unique_ptr<Model> Model::read(const uint8_t* bytes, size_t size, bool whole) {
  if (size < sizeof(Header)) fail(EL_FORMAT, "%zu bytes, wanted a model.lanes file", size);
  std::unique_ptr<Model> model(new Model(bytes, size));
  model->check(whole);
  return model;
}

Model::~Model() {
  if (mapped_) unmap_file({bytes_, size_});
}

Matrix Model::part(uint32_t matrix, uint32_t part, uint32_t copy) const {
  const file::Matrix& m = matrices[matrix];
  const uint32_t number = m.first_part + part;
  const uint64_t tile = uint64_t(copy) * matrix_tiles_[matrix] + part_tiles_[number];
  const uint8_t* scales = m.scales ? bytes_ + m.scales + tile * scale_size(m.columns, m.group) : nullptr;
  const uint8_t* data = bytes_ + m.data + tile * tile_size(m.storage, m.columns);
  return tiles(data, scales, parts[number].rows, m.columns, m.group, m.storage);
}

const float* Model::bias(uint32_t matrix, uint32_t part, uint32_t copy) const {
  const file::Matrix& m = matrices[matrix];
  if (!m.bias) return nullptr;
  const uint64_t tile = uint64_t(copy) * matrix_tiles_[matrix] + part_tiles_[m.first_part + part];
  return reinterpret_cast<const float*>(bytes_ + m.bias) + tile * TILE;
}

Delta Model::delta(uint32_t matrix, uint32_t part, uint32_t depth) const {
  const file::Matrix& m = matrices[matrix];
  const Part& p = parts[m.first_part + part];
  Delta found;
  if (!p.rank) return found;
  found.rank = p.rank;
  found.a = side(p.a, p.storage, p.rank, m.columns, depth, m.depths);
  found.b = side(p.b, p.storage, p.rows, p.rank, depth, m.depths);
  if (p.scale) found.scale = reinterpret_cast<const float*>(bytes_ + p.scale) + depth * filled_up(p.rows);
  return found;
}

Matrix Model::side(uint64_t data, uint32_t storage, uint32_t rows, uint32_t columns, uint32_t depth, uint32_t depths) const {
  const uint64_t count = filled_up(rows) / TILE, size = tile_size(storage, columns);  // tiles
  const uint64_t scales = data + depths * count * size + depth * count * scale_size(columns, columns);
  return tiles(bytes_ + data + depth * count * size, storage == file::I8 ? bytes_ + scales : nullptr, rows, columns, columns,
      storage);
}

const float* Model::vector(uint32_t vector, uint32_t row) const {
  const Vector& v = vectors[vector];
  return reinterpret_cast<const float*>(bytes_ + v.data) + (v.rows ? row * filled_up(v.size) : 0);
}

}  // namespace edgeloop
