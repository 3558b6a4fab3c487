// A block of K and V, which slots may share: of forks, of prompts that begin alike, of depths that a token skipped.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgeloop {

// A reference to memory that is counted: copies of it refer to the same bytes. Whoever writes has them `alone`, or takes
// a `copy` first. Different threads may hold and drop references to the same bytes; one reference is one thread's.
class Block {
 public:
  Block() = default;  // of nothing
  static Block zeros(size_t bytes);  // 64-byte aligned; throws an Error with EL_MEMORY
  Block(const Block& other);
  Block(Block&& other) noexcept : bytes_(other.bytes_) { other.bytes_ = nullptr; }
  Block& operator=(Block other) noexcept;
  ~Block();

  explicit operator bool() const { return bytes_; }
  uint8_t* get() const { return bytes_; }
  uint32_t users() const;  // references there are, this one included
  bool alone() const { return users() == 1; }
  Block copy() const;  // of the bytes; throws an Error with EL_MEMORY

 private:
  uint8_t* bytes_ = nullptr;  // behind a header of 64 bytes
};

}  // namespace edgeloop
