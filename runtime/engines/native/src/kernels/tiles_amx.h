// The tiles of a processor with AMX: what codes_amx.h does with them, an instruction each; what a tile holds afterwards is said
// by their model in test_amx.cpp. Not by intrinsics, whose tiles GCC wants as digits, and not as numbers of a template.
#pragma once

#include <cstdint>

namespace {

struct ProcessorTiles {
  static void configure(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }  // of this thread
  static void release() { asm volatile("tilerelease"); }  // the system then has less to keep of the thread
  template <int T> static void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
  template <int T> static void load(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(rows), "r"(stride) : "memory");
  }
  template <int T> static void store(void* rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(rows), "r"(stride) : "memory");
  }
  template <int To, int A, int B> static void add_products() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(To), "i"(A), "i"(B));
  }
};

}  // namespace
