#include "bench_roofs.h"

#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edgeloop::bench {

uint8_t* memory() {
  static uint8_t* found = nullptr;
  if (!found) {
    found = static_cast<uint8_t*>(aligned_alloc(size_t{2} << 20, MEMORY));
#if defined(__linux__)
    madvise(found, MEMORY, MADV_HUGEPAGE);
#endif
  }
  return found;
}

void fill(Kind kind) {
  uint32_t r = 1;
  for (size_t i = 0; i < MEMORY; i += 4) {
    r = r * 1664525 + 1013904223;
    uint32_t bits = r;
    if (kind == Kind::float32) bits = (r & 0x807fffff) | 0x3c000000;
    if (kind == Kind::float16) bits = (r & 0x83ff83ff) | 0x20002000;
    memcpy(memory() + i, &bits, 4);
  }
}

volatile uint64_t sink;

namespace {

typedef uint64_t Word __attribute__((vector_size(16)));

}  // namespace

double read_roof() {
  const Word* p = reinterpret_cast<const Word*>(memory());
  double found = 0;
  for (const size_t ahead : {0, 256, 512, 768, 1024, 1536}) {
    const double seconds = best([&] {
      Word s0 = {}, s1 = {}, s2 = {}, s3 = {};
      for (size_t i = 0; i < MEMORY / 16; i += 4) {
        __builtin_prefetch(p + i + ahead);
        s0 ^= p[i], s1 ^= p[i + 1], s2 ^= p[i + 2], s3 ^= p[i + 3];
      }
      s0 ^= s1 ^ s2 ^ s3;
      sink = s0[0] ^ s0[1];
    });
    found = std::max(found, double(MEMORY) / seconds);
  }
  return found;
}

#if defined(__x86_64__)
namespace {

constexpr int ROUNDS = 200000;

__attribute__((target("avx512f,avx512vnni"))) void multiply_vnni() {
  __m512i a[16], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
  for (__m512i& s : a) s = _mm512_setzero_si512();
  for (int i = 0; i < ROUNDS; i++)
#pragma GCC unroll 16
    for (__m512i& s : a) s = _mm512_dpbusd_epi32(s, x, y);
  for (int i = 1; i < 16; i++) a[0] = _mm512_add_epi32(a[0], a[i]);
  sink = uint64_t(_mm512_cvtsi512_si32(a[0]));
}

#if __has_include(<avxvnniintrin.h>)
__attribute__((target("avx2"))) void multiply_vex() {
  __m256i a[10], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
  for (__m256i& s : a) s = _mm256_setzero_si256();
  for (int i = 0; i < ROUNDS; i++)
#pragma GCC unroll 10
    for (__m256i& s : a) asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(s) : "x"(x), "x"(y));
  for (int i = 1; i < 10; i++) a[0] = _mm256_add_epi32(a[0], a[i]);
  sink = uint64_t(_mm256_cvtsi256_si32(a[0]));
}
#endif

__attribute__((target("avx2"))) void multiply_avx2() {
  __m256i a[8], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
  for (__m256i& s : a) s = _mm256_setzero_si256();
  for (int i = 0; i < ROUNDS; i++) {
    asm volatile("" : "+x"(x));  // or one product would do for all
#pragma GCC unroll 8
    for (__m256i& s : a) {
      s = _mm256_add_epi16(s, _mm256_maddubs_epi16(x, y));
      asm("" : "+x"(y));
    }
  }
  for (int i = 1; i < 8; i++) a[0] = _mm256_add_epi16(a[0], a[i]);
  sink = uint64_t(_mm256_cvtsi256_si32(a[0]));
}

}  // namespace
#endif

double multiply_roof(const std::string& table) {
#if defined(__x86_64__)
  if (table == "avx512") return 2.0 * ROUNDS * 16 * 64 / best(multiply_vnni);
#if __has_include(<avxvnniintrin.h>)
  if (table == "avxvnni") return 2.0 * ROUNDS * 10 * 32 / best(multiply_vex);
#endif
  if (table == "avx2") return 2.0 * ROUNDS * 8 * 32 / best(multiply_avx2);
#endif
  (void)table;
  return 0;
}

}  // namespace edgeloop::bench
