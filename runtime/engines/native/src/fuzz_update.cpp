// A fuzzer of what an update says and of the lists that are signed: any bytes are an error or tables that hold together.
// With clang it is libFuzzer's (-fsanitize=fuzzer -DEDGELOOP_LIBFUZZER); elsewhere `main` changes given files by lot:
// fuzz_update ROUNDS FILE …
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "error.h"
#include "test_lot.h"
#include "update/file.h"

using namespace edgeloop;
using namespace edgeloop::update;

namespace {

uint64_t opened = 0;  // inputs that held together

// What a call relies on, of tables that were read.
void check(const Tables& tables, uint64_t file_bytes) {
  uint64_t end = tables.bytes.size() + SIGNATURE_BYTES;
  for (const Part& part : tables.parts) {
    if (part.start != end) std::abort();
    end += part.bytes;
  }
  if (end != file_bytes) std::abort();
  size_t copies = 0;
  for (const Listed& file : tables.new_files) {
    if (!is_plain(file.name) || file.name[0] == '/' || file.name.find("..") == 0) std::abort();
    uint64_t total = 0;
    for (uint32_t i = file.first_copy; i < file.first_copy + file.copies; i++) {
      const Copy& copy = tables.copies.at(i);
      if (copy.source == FROM_PART) {
        if (tables.parts.at(copy.part).bytes != copy.bytes) std::abort();
      } else if (copy.offset + copy.bytes > tables.old_files.at(copy.source).size) {
        std::abort();
      }
      total += copy.bytes;
    }
    if (total != file.size) std::abort();
    copies += file.copies;
    tables.unchanged(file);
  }
  if (copies != tables.copies.size()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const uint64_t tables = tables_bytes(data, size, size);
    check(read_tables(std::vector<uint8_t>(data, data + tables), size), size);
    opened++;
  } catch (const Error&) {
  }
  try {
    for (const Sum& sum : read_sums(std::vector<uint8_t>(data, data + size)))
      if (!is_plain(sum.name)) std::abort();
  } catch (const Error&) {
  }
  return 0;
}

#ifndef EDGELOOP_LIBFUZZER

namespace {

void change(std::vector<uint8_t>& bytes, test::Lot& lot) {
  const uint32_t values[] = {0, 1, 2, 0xff, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 20, 4 << 20};
  const uint32_t most = uint32_t(bytes.size()) < 4096 ? uint32_t(bytes.size()) : 4096;
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
  if (lot.below(20) == 0 && !bytes.empty()) bytes.resize(lot.below(uint32_t(bytes.size())));
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return std::fprintf(stderr, "usage: fuzz_update ROUNDS FILE ...\n"), 2;
  const uint64_t rounds = std::strtoull(arguments[1], nullptr, 10);
  std::vector<std::vector<uint8_t>> files;
  for (int i = 2; i < count; i++) {
    FILE* file = std::fopen(arguments[i], "rb");
    if (!file) return std::perror(arguments[i]), 2;
    std::vector<uint8_t> bytes(1 << 20);
    bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
    std::fclose(file);
    files.push_back(std::move(bytes));
    LLVMFuzzerTestOneInput(files.back().data(), files.back().size());
  }
  for (uint64_t round = 0; round < rounds; round++) {
    test::Lot lot(round + 1);
    std::vector<uint8_t> bytes = files[lot.below(uint32_t(files.size()))];
    change(bytes, lot);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%llu changed files, of which %llu in all held together; none did harm\n", (unsigned long long)rounds,
              (unsigned long long)opened);
  return 0;
}

#endif
