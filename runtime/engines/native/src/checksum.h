// The checksum of files: what a byte that was altered by accident is found by.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgeloop {

// CRC-32 of zlib, of bytes before and behind a field that counts as 0.
class Checksum {
 public:
  Checksum() {
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; bit++) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
      table_[i] = c;
    }
  }
  void add(const uint8_t* bytes, size_t count) {
    for (size_t i = 0; i < count; i++) state_ = table_[(state_ ^ bytes[i]) & 255] ^ state_ >> 8;
  }
  uint32_t value() const { return ~state_; }

 private:
  uint32_t table_[256];
  uint32_t state_ = ~0u;
};

}  // namespace edgeloop
