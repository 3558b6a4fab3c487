#include "block.h"

#include <atomic>
#include <cstring>
#include <new>
#include <utility>

#include "error.h"
#include "platform.h"

namespace edgeloop {

namespace {

constexpr size_t ALIGNMENT = MEMORY_ALIGNMENT;

struct Header {
  std::atomic<uint32_t> users;
  size_t bytes;
};
static_assert(sizeof(Header) <= ALIGNMENT, "bytes stay aligned behind it");

Header* header(uint8_t* bytes) { return reinterpret_cast<Header*>(bytes - ALIGNMENT); }

uint8_t* allocated(size_t bytes) {
  const size_t whole = (ALIGNMENT + bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  void* memory = allocate_aligned(whole);
  if (!memory) fail(EL_MEMORY, "no memory for %zu bytes of K and V", bytes);
  new (memory) Header{{1}, bytes};
  return static_cast<uint8_t*>(memory) + ALIGNMENT;
}

}  // namespace

Block Block::zeros(size_t bytes) {
  Block made;
  made.bytes_ = allocated(bytes);
  std::memset(made.bytes_, 0, bytes);
  return made;
}

Block::Block(const Block& other) : bytes_(other.bytes_) {
  if (bytes_) header(bytes_)->users.fetch_add(1, std::memory_order_relaxed);
}

Block& Block::operator=(Block other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

Block::~Block() {
  // What others did with the bytes comes before they are written or freed: acquire here and in `users`.
  if (bytes_ && header(bytes_)->users.fetch_sub(1, std::memory_order_acq_rel) == 1) free_aligned(header(bytes_));
}

uint32_t Block::users() const { return header(bytes_)->users.load(std::memory_order_acquire); }

Block Block::copy() const {
  Block made;
  made.bytes_ = allocated(header(bytes_)->bytes);
  std::memcpy(made.bytes_, bytes_, header(bytes_)->bytes);
  return made;
}

}  // namespace edgeloop
