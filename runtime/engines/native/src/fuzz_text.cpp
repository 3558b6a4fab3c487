// A fuzzer of text sections and of texts: any bytes are an error or a tokenizer, and any text an error or tokens. With clang
// it is libFuzzer's (-fsanitize=fuzzer -DEDGELOOP_LIBFUZZER), whose inputs are a section, a text and the size of the text;
// elsewhere `main` changes given sections by lot: fuzz_text ROUNDS FILE …
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "test_lot.h"
#include "text/writer.h"

using namespace edgeloop;
using edgeloop::test::Lot;
using edgeloop::text::Text;

namespace {

uint64_t opened = 0, encoded = 0;

// Opens a section of `size` bytes that begin at a multiple of 64, and does with it what an app does.
void use(const uint8_t* section, size_t size, const std::string& words, Lot& lot) {
  try {
    const Text text(section, size, false);
    opened++;
    std::vector<uint32_t> ids;
    try {
      text.encode(words, lot.below(2), ids);
      encoded++;
    } catch (const Error&) {
      ids.clear();
    }
    std::vector<int64_t> tokens(ids.begin(), ids.end());
    for (uint32_t more = lot.below(40); more--;) tokens.push_back(int64_t(lot.below(1500)) - 2);
    std::string back;
    text.decode(tokens.data(), tokens.size(), lot.below(2), back);
    const char* stops[] = {"the", "\xc3\xa9", " "};
    const size_t cut = lot.below(uint32_t(tokens.size() + 1));
    text::Writer writer(text, tokens.data(), std::min<size_t>(cut, 64), stops, lot.below(4));
    for (size_t i = cut; i < std::min(tokens.size(), cut + 200) && !writer.stopped; i++) writer.push(tokens[i]);
    writer.end();
  } catch (const Error&) {
  } catch (const std::bad_alloc&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4 || size > (8u << 20)) return 0;
  uint32_t words;
  std::memcpy(&words, data + size - 4, 4);
  size -= 4;
  words = uint32_t(std::min<size_t>(words, std::min<size_t>(size, 4096)));
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, size - words + 64)) return 0;
  std::memcpy(memory, data, size - words);
  Lot lot(size + words);
  use(static_cast<const uint8_t*>(memory), size - words, {reinterpret_cast<const char*>(data) + size - words, words}, lot);
  std::free(memory);
  return 0;
}

#ifndef EDGELOOP_LIBFUZZER

namespace {

struct Section {
  uint8_t* bytes;
  size_t size;
};

Section read_file(const char* path) {
  FILE* file = std::fopen(path, "rb");
  if (!file) {
    std::perror(path);
    std::exit(2);
  }
  std::fseek(file, 0, SEEK_END);
  const size_t size = size_t(std::ftell(file));
  std::rewind(file);
  void* memory = nullptr;
  // No byte more: what is read behind the end is found.
  if (posix_memalign(&memory, 64, size) || std::fread(memory, 1, size, file) != size) std::exit(2);
  std::fclose(file);
  return {static_cast<uint8_t*>(memory), size};
}

std::string words(Lot& lot) {
  static const char* const parts[] = {"Once upon a time", " ", "\n", "\xc3\xa9", "e\xcc\x81", "\xe4\xbb\x96", "\xea\xb0\x81",
      "\xf0\x9f\x98\x80", "'s", "12345", "<|end|>", "<s>", "[MASK]", "\xe2\x96\x81", "\xef\xac\x81", "\t", "...", "THE",
      "\xcc\xa7\xcc\x81", "\x01"};
  std::string made;
  for (uint32_t n = lot.below(16); n--;) {
    const uint32_t kind = lot.below(24);
    if (kind < 20)
      made.append(parts[kind]);
    else if (kind < 22)
      made.append(lot.below(60), made.empty() ? 'a' : char(made.back() & 0x7f));
    else
      made.push_back(char(lot.below(kind == 22 ? 128 : 256)));
  }
  return made;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return std::fprintf(stderr, "usage: fuzz_text ROUNDS FILE ...\n"), 2;
  const uint64_t rounds = std::strtoull(arguments[1], nullptr, 10);
  std::vector<Section> files;
  for (int i = 2; i < count; i++) files.push_back(read_file(arguments[i]));
  const uint32_t values[] = {0, 1, 2, 3, 63, 64, 255, 0xffff, 0x10ffff, 0x110000, 0xfffffe, 0xffffff, 0x7fffffff, 0xffffffff};
  for (uint64_t round = 0; round < rounds; round++) {
    Lot lot(round + 1);
    const Section& file = files[lot.below(uint32_t(files.size()))];
    struct Old {
      size_t at;
      uint32_t value;
    } old[3];
    const uint32_t changes = lot.below(4);
    for (uint32_t i = 0; i < changes; i++) {
      // Half of them in what comes first: the list of tables, rules and steps.
      const size_t most = (lot.below(2) ? std::min<size_t>(file.size, 4096) : file.size) / 4;
      uint32_t& value = reinterpret_cast<uint32_t*>(file.bytes)[old[i].at = lot.below(uint32_t(most))];
      old[i].value = value;
      switch (lot.below(4)) {
        case 0: value = values[lot.below(sizeof values / sizeof *values)]; break;
        case 1: value += lot.below(5) - 2; break;
        case 2: value ^= 1u << lot.below(32); break;
        default: value = lot.bits();
      }
    }
    use(file.bytes, file.size, words(lot), lot);
    for (uint32_t i = changes; i--;) reinterpret_cast<uint32_t*>(file.bytes)[old[i].at] = old[i].value;
  }
  std::printf("%llu changed sections, of which %llu were tokenizers and %llu made tokens; none did harm\n",
              (unsigned long long)rounds, (unsigned long long)opened, (unsigned long long)encoded);
  for (const Section& file : files) std::free(file.bytes);
  return 0;
}

#endif
