// A fuzzer of the file reader and of the calls: any bytes are an error code or a model, and any arguments an error code
// or numbers. With clang it is libFuzzer's (-fsanitize=fuzzer -DEDGELOOP_LIBFUZZER); elsewhere `main` changes given files
// by lot: fuzz ROUNDS FILE …
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "engine.h"
#include "error.h"
#include "fuzz_calls.h"

using namespace edgeloop;
using edgeloop::test::Lot;

namespace {

constexpr size_t MOST_FLOATS = 1 << 18;  // of a row: larger models are opened, but not run
#ifdef __SANITIZE_THREAD__
constexpr uint32_t MANY = 1;  // one in so many models has two threads
#else
constexpr uint32_t MANY = 8;
#endif
uint64_t opened = 0;  // inputs that were models

bool small(const el_model& model) {
  size_t floats = model.head.program.output_width();
  const auto add = [&](const Compiled& c) {
    floats += c.plan.floats + c.plan.memory + c.plan.scratch;
    for (uint32_t size : c.program.sizes) floats += size;
  };
  for (const Compiled* c : {&model.prologue, &model.epilogue, &model.head}) add(*c);
  for (const Compiled& c : model.blocks) add(c);
  for (const file::Cache& cache : model.model->caches) floats += size_t(cache.kv_heads) * cache.head_dim;
  for (const file::Matrix& m : model.model->matrices) floats += m.columns;
  return floats < MOST_FLOATS;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  void* memory = nullptr;
  if (size > (64u << 20) || posix_memalign(&memory, 64, size + 64)) return 0;
  std::memcpy(memory, data, size);
  try {
    el_open_options options = {};
    uint64_t seed = size;
    for (size_t i = 0; i < size; i += 1 + size / 512) seed = seed * 31 + data[i];
    Lot lot(seed);
    options.activations = lot.below(2);
    options.threads = 1 + (lot.below(MANY) == 0);
    el_model model(Model::read(static_cast<uint8_t*>(memory), size, false), options);
    opened++;
    if (small(model))
      for (int i = 0; i < 3; i++) call(model, lot);
  } catch (const Error&) {
  } catch (const std::bad_alloc&) {
  }
  std::free(memory);
  return 0;
}

#ifndef EDGELOOP_LIBFUZZER

namespace {

std::vector<uint8_t> read_file(const char* path) {
  std::vector<uint8_t> bytes;
  FILE* file = std::fopen(path, "rb");
  if (!file) {
    std::perror(path);
    std::exit(2);
  }
  uint8_t piece[1 << 16];
  for (size_t n; (n = std::fread(piece, 1, sizeof piece, file)) > 0;) bytes.insert(bytes.end(), piece, piece + n);
  std::fclose(file);
  return bytes;
}

// A few changes, most of them to 32-bit numbers of the tables.
void change(std::vector<uint8_t>& bytes, Lot& lot) {
  const uint32_t values[] = {0, 1, 2, 3, 15, 16, 17, 255, 1 << 16, 1 << 24, (1 << 24) + 1, 0x7fffffff, 0x80000000,
      0xffffffff, 0x7fc00000, 0x7f800000};
  uint64_t tables = 0;
  std::memcpy(&tables, bytes.data() + offsetof(file::Header, data_start), sizeof tables);
  const uint32_t most = uint32_t(std::min<uint64_t>(lot.below(4) ? tables : bytes.size(), bytes.size()));
  for (uint32_t changes = 1 + lot.below(3); changes-- && most >= 8;) {
    const uint32_t at = lot.below(most / 4) * 4;
    uint32_t value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    switch (lot.below(4)) {
      case 0: value = values[lot.below(sizeof values / sizeof *values)]; break;
      case 1: value += lot.below(5) - 2; break;
      case 2: value ^= 1u << lot.below(32); break;
      case 3: value = lot.bits(); break;
    }
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
  if (lot.below(20) == 0) bytes.resize(lot.below(uint32_t(bytes.size())));
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return std::fprintf(stderr, "usage: fuzz ROUNDS FILE ...\n"), 2;
  const uint64_t rounds = std::strtoull(arguments[1], nullptr, 10);
  std::vector<std::vector<uint8_t>> files;
  for (int i = 2; i < count; i++) files.push_back(read_file(arguments[i]));
  for (const auto& file : files) LLVMFuzzerTestOneInput(file.data(), file.size());
  for (uint64_t round = 0; round < rounds; round++) {
    Lot lot(round + 1);
    std::vector<uint8_t> bytes = files[lot.below(uint32_t(files.size()))];
    change(bytes, lot);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%llu changed files, of which %llu still were models; none did harm\n", (unsigned long long)rounds,
              (unsigned long long)(opened - files.size()));
  return 0;
}

#endif
