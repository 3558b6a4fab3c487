// What may be wrong with a file: every offset, size and count is checked once, before anything is read by it.
#include <cmath>
#include <cstring>

#include "checksum.h"
#include "error.h"
#include "model.h"

namespace edgeloop {

using file::ALIGNMENT, file::TILE, file::MAX_DEPTHS, file::MAX_GROUP, file::MAX_RECORDS, file::MAX_SIZE;
using file::F16, file::F32, file::I4, file::I8, file::STAGES_WITH_CACHES, file::STORAGES;
using file::filled_up, file::scale_size, file::tile_size;
using file::Cache, file::Depth, file::Header, file::Op, file::Part, file::Rotation, file::Stage, file::Vector;

namespace {

constexpr uint64_t MAX_NUMBERS = uint64_t(1) << 40;  // of one tensor
// times a position it still is a whole number of turns and a rest
constexpr double MAX_FREQUENCY = 1e9;

}  // namespace

void Model::check(bool whole) {
  check_header(whole);
  stages = table<Stage>(file::STAGES, "stages");
  ops = table<Op>(file::OPS, "ops");
  operands = table<uint32_t>(file::OPERANDS, "operands");
  values = table<uint32_t>(file::VALUES, "values");
  schedule = table<Depth>(file::SCHEDULE, "schedule");
  carries = table<uint32_t>(file::CARRIES, "carries");
  caches = table<Cache>(file::CACHES, "caches");
  kept = table<uint32_t>(file::KEPT, "kept rows");
  matrices = table<file::Matrix>(file::MATRICES, "matrices");
  parts = table<Part>(file::PARTS, "parts");
  vectors = table<Vector>(file::VECTORS, "vectors");
  rotations = table<Rotation>(file::ROTATIONS, "rotations");
  frequencies = table<double>(file::FREQUENCIES, "frequencies");
  const View<char> names = table<char>(file::NAMES, "names");
  names_ = names.data;
  names_size_ = names.count;
  if (!names_size_ || names_[names_size_ - 1]) fail(EL_FORMAT, "the last name has no end");

  uint64_t width = 0;
  for (uint32_t carry : carries) {
    if (carry < 1 || carry > MAX_SIZE) fail(EL_FORMAT, "a carry is %u wide, wanted 1 to %u", carry, MAX_SIZE);
    width += carry;
  }
  if (width < 1 || width > MAX_SIZE)
    fail(EL_FORMAT, "a state is %llu wide, wanted 1 to %u", (unsigned long long)width, MAX_SIZE);
  width_ = uint32_t(width);
  if (schedule.count < 1 || schedule.count > MAX_DEPTHS)
    fail(EL_FORMAT, "%zu depths, wanted 1 to %u", schedule.count, MAX_DEPTHS);
  check_caches();
  part_tiles_.assign(parts.count, 0);
  matrix_tiles_.assign(matrices.count, 0);
  for (uint32_t number = 0; number < matrices.count; number++) check_matrix(number);
  for (const Vector& vector : vectors) check_vector(vector);
  for (const Rotation& rotation : rotations) check_rotation(rotation);
}

void Model::check_header(bool whole) const {
  const Header& h = header();
  if (std::memcmp(h.magic, file::MAGIC, sizeof file::MAGIC))
    fail(EL_FORMAT, "no model.lanes file: it begins otherwise");
  if (h.version != file::VERSION || h.header_bytes != sizeof(Header))
    fail(EL_FORMAT, "format %u, wanted %u: export the checkpoint again, or install the edgeloop that wrote it",
        h.version, file::VERSION);
  if (h.file_bytes != size_)
    fail(EL_FORMAT, "%zu bytes, wanted %llu: the file is not whole, copy it again", size_,
        (unsigned long long)h.file_bytes);
  if (h.data_start < sizeof(Header) || h.data_start > size_ || h.data_start % ALIGNMENT)
    fail(EL_FORMAT, "tensors begin at byte %llu", (unsigned long long)h.data_start);
  if (whole) {
    const uint8_t zeros[sizeof h.checksum] = {};
    const size_t field = offsetof(Header, checksum);
    Checksum sum;
    sum.add(bytes_, field);
    sum.add(zeros, sizeof zeros);
    sum.add(bytes_ + field + sizeof zeros, h.data_start - field - sizeof zeros);
    if (sum.value() != h.checksum)
      fail(EL_FORMAT, "its tables have another checksum: the file was altered, copy it again");
  }
  const auto within = [](const char* what, uint32_t value, uint32_t low, uint32_t high) {
    if (value < low || value > high) fail(EL_FORMAT, "%s is %u, wanted %u to %u", what, value, low, high);
  };
  within("vocab_size", h.vocab_size, 1, MAX_SIZE);
  within("context_length", h.context_length, 1, MAX_SIZE);
  within("token_types", h.token_types, 0, MAX_SIZE);
  within("shares_kv", h.shares_kv, 0, 1);
  if (h.text_bytes && (h.text % ALIGNMENT || h.text < h.data_start || h.text > size_ || h.text_bytes > size_ - h.text))
    fail(EL_FORMAT, "the text section has %llu bytes at %llu", (unsigned long long)h.text_bytes, (unsigned long long)h.text);
}

template <class T>
View<T> Model::table(file::TableNumber number, const char* name) const {
  const file::Table& found = header().tables[number];
  const uint64_t most = number == file::NAMES || number == file::FREQUENCIES ? 16 * MAX_RECORDS : MAX_RECORDS;
  const uint64_t end = header().data_start;
  if (found.count > most)
    fail(EL_FORMAT, "%llu %s, wanted %llu at most", (unsigned long long)found.count, name, (unsigned long long)most);
  if (!found.count) return {};
  if (found.offset % ALIGNMENT || found.offset < sizeof(Header) || found.offset > end
      || found.count * sizeof(T) > end - found.offset)
    fail(EL_FORMAT, "the table of %s is not where it may be", name);
  return {reinterpret_cast<const T*>(bytes_ + found.offset), size_t(found.count)};
}

const char* Model::name_at(uint32_t offset) const {
  if (offset >= names_size_) fail(EL_FORMAT, "a name begins at %u of %zu bytes", offset, names_size_);
  return names_ + offset;
}

void Model::check_tensor(uint64_t offset, uint64_t bytes, const char* name) const {
  if (offset % ALIGNMENT || offset < header().data_start || offset > size_ || bytes > size_ - offset)
    fail(EL_FORMAT, "%.80s: %llu bytes at %llu are not within the tensors", name, (unsigned long long)bytes,
        (unsigned long long)offset);
}

void Model::check_caches() const {
  const Header& h = header();
  for (const auto& [ranges, count] : {std::pair(h.caches, caches.count), std::pair(h.kept, kept.count)}) {
    uint64_t next = 0;
    for (uint32_t stage = 0; stage < STAGES_WITH_CACHES; stage++) {
      if (ranges[stage].first != next)
        fail(EL_FORMAT, "the caches of stage %u begin with %u, wanted %llu", stage, ranges[stage].first,
            (unsigned long long)next);
      next += ranges[stage].count;
    }
    if (next != count) fail(EL_FORMAT, "the stages have %llu caches of %zu", (unsigned long long)next, count);
  }
  for (const Cache& cache : caches)
    if (cache.kv_heads < 1 || cache.head_dim < 1 || uint64_t(cache.kv_heads) * cache.head_dim > MAX_SIZE
        || cache.window > MAX_SIZE)
      fail(EL_FORMAT, "a cache of %u heads of %u, window %u", cache.kv_heads, cache.head_dim, cache.window);
  for (uint32_t size : kept)
    if (size < 1 || size > MAX_SIZE) fail(EL_FORMAT, "a row of %u numbers is kept, wanted 1 to %u", size, MAX_SIZE);
}

void Model::check_matrix(uint32_t number) {
  const file::Matrix& m = matrices[number];
  const char* name = name_at(m.name);
  const bool coded = m.storage == I8 || m.storage == I4;
  if (m.storage >= STORAGES || m.columns < 1 || m.columns > MAX_SIZE || m.copies < 1 || m.copies > MAX_RECORDS
      || m.depths < 1 || m.depths > MAX_DEPTHS)
    fail(EL_FORMAT, "%.80s: storage %u, %u columns, %u copies, %u depths", name, m.storage, m.columns, m.copies,
        m.depths);
  if (coded ? m.group < 1 || m.group > MAX_GROUP || (m.group % 16 && m.group != m.columns) : m.group != 0)
    fail(EL_FORMAT, "%.80s: groups of %u columns", name, m.group);
  check_parts(m, number);
  const uint64_t all = uint64_t(m.copies) * matrix_tiles_[number];
  if (all * TILE > MAX_NUMBERS / m.columns) fail(EL_FORMAT, "%.80s is too large", name);
  check_tensor(m.data, all * tile_size(m.storage, m.columns), name);
  if (coded) check_tensor(m.scales, all * scale_size(m.columns, m.group), name);
  if (!coded && m.scales) fail(EL_FORMAT, "%.80s: floats with scales", name);
  if (m.bias) check_tensor(m.bias, all * TILE * sizeof(float), name);
}

void Model::check_parts(const file::Matrix& m, uint32_t number) {
  const char* name = name_at(m.name);
  if (m.parts < 1 || m.first_part > parts.count || m.parts > parts.count - m.first_part)
    fail(EL_FORMAT, "%.80s: %u parts", name, m.parts);
  uint64_t rows = 0;
  for (uint32_t i = m.first_part; i < m.first_part + m.parts; i++) {
    const Part& p = parts[i];
    const char* whose = name_at(p.name);
    if (p.rows < 1 || p.rows > MAX_SIZE || p.rank > MAX_SIZE)
      fail(EL_FORMAT, "%.80s: %u rows, rank %u", whose, p.rows, p.rank);
    part_tiles_[i] = uint32_t(rows / TILE);
    rows += filled_up(p.rows);
    if (rows > MAX_SIZE * uint64_t(TILE)) fail(EL_FORMAT, "%.80s has too many rows", name);
    if (!p.rank) continue;
    if (p.storage != F32 && p.storage != F16 && p.storage != I8)
      fail(EL_FORMAT, "%.80s: a delta of storage %u", whose, p.storage);
    check_side(p.a, p, p.rank, m.columns, m.depths);
    check_side(p.b, p, p.rows, p.rank, m.depths);
    if (p.scale) check_tensor(p.scale, m.depths * filled_up(p.rows) * sizeof(float), whose);
  }
  matrix_tiles_[number] = uint32_t(rows / TILE);
}

void Model::check_side(uint64_t data, const Part& part, uint32_t rows, uint32_t columns, uint32_t depths) const {
  const char* name = name_at(part.name);
  const uint32_t most = part.storage == I8 ? MAX_GROUP : MAX_SIZE;
  if (columns > most) fail(EL_FORMAT, "%.80s: groups of %u columns in a delta, wanted %u at most", name, columns, most);
  if (filled_up(rows) > MAX_NUMBERS / columns / depths) fail(EL_FORMAT, "%.80s: the delta is too large", name);
  const uint64_t scales = part.storage == I8 ? scale_size(columns, columns) : 0;
  check_tensor(data, depths * (filled_up(rows) / TILE) * (tile_size(part.storage, columns) + scales), name);
}

void Model::check_vector(const Vector& vector) const {
  const char* name = name_at(vector.name);
  if (vector.size < 1 || vector.size > MAX_SIZE || vector.rows > MAX_SIZE)
    fail(EL_FORMAT, "%.80s: %u rows of %u", name, vector.rows, vector.size);
  const uint64_t rows = vector.rows ? vector.rows : 1;
  if (filled_up(vector.size) > MAX_NUMBERS / rows) fail(EL_FORMAT, "%.80s is too large", name);
  check_tensor(vector.data, rows * filled_up(vector.size) * sizeof(float), name);
}

void Model::check_rotation(const Rotation& rotation) const {
  const uint32_t pairs = rotation.dims / 2;
  if (rotation.dims < 2 || rotation.dims % 2 || rotation.first_frequency > frequencies.count
      || pairs > frequencies.count - rotation.first_frequency)
    fail(EL_FORMAT, "a rotation of %u dims", rotation.dims);
  if (!std::isfinite(rotation.amplitude)) fail(EL_FORMAT, "a rotation has no finite amplitude");
  for (uint32_t i = 0; i < pairs; i++)
    if (!(std::fabs(frequencies[rotation.first_frequency + i]) <= MAX_FREQUENCY))
      fail(EL_FORMAT, "a rotation has no finite frequency");
}

}  // namespace edgeloop
