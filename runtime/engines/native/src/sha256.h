// SHA-256 (FIPS 180-4), of what a file holds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgeloop {

class Sha256 {
 public:
  static constexpr size_t BYTES = 32;
  void add(const void* data, size_t count);
  // Of all that was added; nothing is added behind it.
  void finish(uint8_t digest[BYTES]);

 private:
  void block(const uint8_t* data);

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint64_t count_ = 0;
  uint8_t open_[64] = {};
};

}  // namespace edgeloop
