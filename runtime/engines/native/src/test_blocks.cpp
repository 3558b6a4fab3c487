// Blocks that slots share: who writes has a copy, what a window leaves is given back, several threads. Exit status 0: all hold.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "cache.h"
#include "test_lot.h"

using namespace edgeloop;
using namespace edgeloop::test;

namespace {

constexpr KvLayout LAYOUT{2, 8, CacheKind::float32};
constexpr uint32_t TILE = file::TILE;

bool all(const Block& block, uint8_t wanted) {
  for (size_t i = 0; i < LAYOUT.block(); i++)
    if (block.get()[i] != wanted) return false;
  return true;
}

// A slot whose block b is full of bytes b + 1.
Slot filled(uint32_t blocks) {
  Slot slot;
  slot.reserve(LAYOUT, 0, 0, blocks * TILE);
  for (uint32_t b = 0; b < blocks; b++) std::memset(slot.block(b).get(), int(b + 1), LAYOUT.block());
  return slot;
}

void references() {
  Block none, one = Block::zeros(100);
  expect(!none && one && one.alone() && reinterpret_cast<uintptr_t>(one.get()) % 64 == 0, "a new block");
  {
    const Block two = one;
    expect(two.get() == one.get() && one.users() == 2 && !one.alone(), "two references to a block");
    Block three = two.copy();
    expect(three.get() != two.get() && three.alone() && one.users() == 2, "a copy of the bytes");
    three = two;
    expect(one.users() == 3, "a reference that referred to something else");
  }
  expect(one.alone(), "references that are gone");
  none = std::move(one);
  expect(!one && none.alone(), "a reference that was moved");
}

void writes() {
  const Slot slot = filled(4);
  Slot fork = slot;
  for (uint32_t b = 0; b < 4; b++) expect(fork.blocks()[b] == slot.blocks()[b], "a fork has memory of its own");
  fork.reserve(LAYOUT, 0, 2 * TILE + 3, 2 * TILE + 4);
  expect(slot.block(0).users() == 2 && slot.block(1).users() == 2 && slot.block(3).users() == 2, "what is not written is copied");
  expect(slot.block(2).alone() && fork.block(2).alone() && all(fork.block(2), 3), "what is written is not copied");
  expect(fork.blocks()[2] == fork.block(2).get(), "the address of a copy");
  fork.reserve(LAYOUT, 0, 0, 4 * TILE);
  for (uint32_t b = 0; b < 4; b++) expect(slot.block(b).alone() && all(fork.block(b), uint8_t(b + 1)), "a fork that begins anew");
  fork.share(9, slot.block(0));
  expect(fork.count() == 10 && !fork.block(7) && slot.block(0).users() == 2, "a block behind the last one");
  fork.trim(TILE + 1);
  expect(fork.count() == 2 && slot.block(0).alone(), "what is trimmed is given back");
}

void windows() {
  const Slot slot = filled(20);
  Slot fork = slot;
  const uint32_t window = 20, cached = 19 * TILE;
  expect(fork.reserve(LAYOUT, window, cached, cached + 1), "a window that moves on");
  const uint32_t left = (cached + 1 - window - SLACK) / TILE;
  expect(fork.first() == left * TILE && !fork.block(left - 1) && fork.block(left), "what a window has left");
  for (uint32_t b = 0; b < left; b++) expect(slot.block(b).alone() && all(slot.block(b), uint8_t(b + 1)), "what it has left is another's");
  expect(fork.block(19).alone() && all(fork.block(19), 20), "a block that is written beside a window");
  expect(!fork.reserve(LAYOUT, window, 30, 31), "what has left a window is seen again");
  Slot other;
  other.begins(left * TILE - 3);
  expect(other.first() == left * TILE && !other.reserve(LAYOUT, window, 30, 31), "a slot that begins later");
  // Blocks that a window has left are used again, but not while others have them.
  Slot alone = filled(20);
  const std::vector<const void*> before(alone.blocks(), alone.blocks() + alone.count());
  alone.reserve(LAYOUT, window, 20 * TILE, 20 * TILE + 1);
  const bool again = std::find(before.begin(), before.end(), alone.blocks()[20]) != before.end();
  expect(again, "the memory of a block that was left");
}

void threads() {
  const Slot slot = filled(8);
  std::vector<std::thread> all_of_them;
  std::vector<int> wrong(4, 0);
  for (uint32_t t = 0; t < 4; t++)
    all_of_them.emplace_back([&, t] {
      Slot last = slot;
      for (uint32_t round = 0; round < 300; round++) {
        Slot fork = round % 3 ? slot : last;
        const uint32_t from = (round * 7 + t) % 8;
        fork.reserve(LAYOUT, 0, from * TILE, 8 * TILE);
        for (uint32_t b = 0; b < 8; b++) {
          wrong[t] += round % 3 && !all(fork.block(b), uint8_t(b + 1));
          if (b >= from) std::memset(fork.block(b).get(), int(100 + t), LAYOUT.block());
        }
        for (uint32_t b = from; b < 8; b++) wrong[t] += !all(fork.block(b), uint8_t(100 + t));
        last = std::move(fork);
      }
    });
  for (std::thread& thread : all_of_them) thread.join();
  for (int count : wrong) expect(count == 0, "one thread's bytes are another's");
  for (uint32_t b = 0; b < 8; b++) expect(slot.block(b).alone() && all(slot.block(b), uint8_t(b + 1)), "what nobody wrote to");
}

}  // namespace

int main() {
  references();
  writes();
  windows();
  threads();
  return ended("blocks");
}
