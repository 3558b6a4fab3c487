// Scalar models of the instructions that multiply small whole numbers. On every processor: what the kernels make of
// them is exact at the extremes. On those that have the instruction: it does what its model says.
#include <algorithm>
#include <array>
#include <cstring>

#include "test.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edgeloop::test {

namespace {

template <class T>
using Bytes32 = std::array<T, 32>;

int16_t saturated(int x) { return int16_t(std::min(32767, std::max(-32768, x))); }

// vpmaddubsw: unsigned times signed bytes, neighbours added, saturating.
std::array<int16_t, 16> maddubs(const Bytes32<uint8_t>& u, const Bytes32<int8_t>& s) {
  std::array<int16_t, 16> r{};
  for (size_t i = 0; i < 16; i++) r[i] = saturated(u[2 * i] * s[2 * i] + u[2 * i + 1] * s[2 * i + 1]);
  return r;
}

// vpmaddwd with ones: neighbours added.
std::array<int32_t, 8> madd_ones(const std::array<int16_t, 16>& x) {
  std::array<int32_t, 8> r{};
  for (size_t i = 0; i < 8; i++) r[i] = x[2 * i] + x[2 * i + 1];
  return r;
}

std::array<int16_t, 16> add_words(std::array<int16_t, 16> a, const std::array<int16_t, 16>& b) {
  for (size_t i = 0; i < 16; i++) a[i] = int16_t(uint16_t(a[i]) + uint16_t(b[i]));  // wraps
  return a;
}

// vpabsb, vpsignb.
Bytes32<uint8_t> abs_bytes(const Bytes32<int8_t>& x) {
  Bytes32<uint8_t> r{};
  for (size_t i = 0; i < 32; i++) r[i] = uint8_t(x[i] < 0 ? -x[i] : x[i]);
  return r;
}
Bytes32<int8_t> sign_bytes(const Bytes32<int8_t>& x, const Bytes32<int8_t>& by) {
  Bytes32<int8_t> r{};
  for (size_t i = 0; i < 32; i++) r[i] = int8_t(by[i] < 0 ? -x[i] : by[i] == 0 ? 0 : x[i]);
  return r;
}

// vpdpbusd: sums of 4 products of unsigned and signed bytes, added to 32 bits, not saturating.
std::array<int32_t, 8> dpbusd(std::array<int32_t, 8> sums, const Bytes32<uint8_t>& u, const Bytes32<int8_t>& s) {
  for (size_t i = 0; i < 8; i++)
    for (size_t j = 4 * i; j < 4 * i + 4; j++) sums[i] = int32_t(uint32_t(sums[i]) + uint32_t(u[j] * s[j]));
  return sums;
}

// smlal, of both halves: products of signed bytes, added to 16 bits, wrapping.
template <size_t N>
std::array<int16_t, N> add_products(std::array<int16_t, N> sums, const int8_t* a, const int8_t* b) {
  for (size_t i = 0; i < N; i++) sums[i] = int16_t(uint16_t(sums[i]) + uint16_t(a[i] * b[i]));
  return sums;
}

// Bytes from `least` to `most`, half of them one of the two.
template <class T>
Bytes32<T> bytes(Random& random, int least, int most) {
  Bytes32<T> r{};
  for (T& x : r) x = T(random.below(4) == 0 ? least : random.below(3) == 0 ? most : least + random.below(most - least + 1));
  return r;
}

template <class U>
std::array<int32_t, 8> exact(std::array<int32_t, 8> sums, const Bytes32<U>& u, const Bytes32<int8_t>& s) {
  for (size_t i = 0; i < 32; i++) sums[i / 4] += int32_t(u[i]) * s[i];
  return sums;
}

// What avx2 does with int4: four products of bytes are added in 16 bits before they become 32.
void int4_by_maddubs(Random& random, bool extreme) {
  std::array<int16_t, 16> pairs{};
  std::array<int32_t, 8> wanted{};
  for (int i = 0; i < 4; i++) {
    Bytes32<uint8_t> codes = bytes<uint8_t>(random, 0, 15);
    Bytes32<int8_t> x = bytes<int8_t>(random, -127, 127);
    if (extreme) codes.fill(15), x.fill(random.below(2) ? 127 : -127);
    pairs = add_words(pairs, maddubs(codes, x));
    wanted = exact(wanted, codes, x);
  }
  expect(madd_ones(pairs) == wanted, "models: int4 by maddubs");
}

// What avx2 does with int8: sizes of the weights times activations with the product's sign.
void int8_by_sign(Random& random, bool extreme) {
  Bytes32<int8_t> w = bytes<int8_t>(random, -128, 127), x = bytes<int8_t>(random, -127, 127);
  if (extreme) w.fill(-128), x.fill(random.below(2) ? 127 : -127);
  expect(madd_ones(maddubs(abs_bytes(w), sign_bytes(x, w))) == exact({}, w, x), "models: int8 by maddubs and sign");
}

// What VNNI does: unsigned codes, and the offset times the sum of the activations taken away, over the longest group.
void codes_by_dpbusd(Random& random, int zero, int most, bool extreme) {
  std::array<int32_t, 8> sums{};
  int64_t sum_of_x = 0, wanted = 0;
  for (int k = 0; k < LONGEST_GROUP; k += 4) {
    Bytes32<uint8_t> codes = bytes<uint8_t>(random, 0, most);
    Bytes32<int8_t> x = bytes<int8_t>(random, -127, 127);
    if (extreme) codes.fill(uint8_t(most)), x.fill(127);
    sums = dpbusd(sums, codes, x);
    for (size_t j = 0; j < 4; j++) sum_of_x += x[j], wanted += (int(codes[j]) - zero) * x[j];
  }
  expect(int64_t(sums[0]) - zero * sum_of_x == wanted, "models: codes by dpbusd");
  expect(wanted == int32_t(wanted) && zero * sum_of_x == int32_t(zero * sum_of_x), "models: the longest group fits 32 bits");
}

// What neon does: 8 products of int4 codes, or 2 of int8, are added in 16 bits before they become 32.
void codes_by_widening(Random& random, int products, int least, int most, bool extreme) {
  std::array<int16_t, 32> sums{};
  std::array<int32_t, 32> wanted{};
  for (int i = 0; i < products; i++) {
    Bytes32<int8_t> w = bytes<int8_t>(random, least, most), x = bytes<int8_t>(random, -127, 127);
    if (extreme) w.fill(int8_t(least == 0 ? most : least)), x.fill(-127);
    sums = add_products(sums, w.data(), x.data());
    for (size_t j = 0; j < 32; j++) wanted[j] += w[j] * x[j];
  }
  expect(std::equal(sums.begin(), sums.end(), wanted.begin()), "models: codes by widening products");
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) void avx2_instructions(Random& random) {
  const Bytes32<uint8_t> u = bytes<uint8_t>(random, 0, 255);
  const Bytes32<int8_t> s = bytes<int8_t>(random, -128, 127), t = bytes<int8_t>(random, -128, 127);
  __m256i vu, vs, vt;
  memcpy(&vu, &u, 32), memcpy(&vs, &s, 32), memcpy(&vt, &t, 32);
  const __m256i pairs = _mm256_maddubs_epi16(vu, vs), longs = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  const __m256i size = _mm256_abs_epi8(vs), sign = _mm256_sign_epi8(vs, vt);
  expect(memcmp(&pairs, maddubs(u, s).data(), 32) == 0, "models: maddubs");
  expect(memcmp(&longs, madd_ones(maddubs(u, s)).data(), 32) == 0, "models: madd");
  expect(memcmp(&size, abs_bytes(s).data(), 32) == 0, "models: abs");
  expect(memcmp(&sign, sign_bytes(s, t).data(), 32) == 0, "models: sign");
}

// `add`: the instruction as AVX-512 VNNI has it, or as AVX-VNNI has it.
__attribute__((target("avx2"))) void dot_instruction(Random& random, void (*add)(__m256i&, const __m256i&, const __m256i&)) {
  const Bytes32<uint8_t> u = bytes<uint8_t>(random, 0, 255);
  const Bytes32<int8_t> s = bytes<int8_t>(random, -128, 127);
  std::array<int32_t, 8> sums{};
  for (int32_t& x : sums) x = int32_t(random.bits());
  __m256i vu, vs, found;
  memcpy(&vu, &u, 32), memcpy(&vs, &s, 32), memcpy(&found, &sums, 32);
  add(found, vu, vs);
  expect(memcmp(&found, dpbusd(sums, u, s).data(), 32) == 0, "models: dpbusd");
}

__attribute__((target("avx512f,avx512vl,avx512vnni"))) void add_evex(__m256i& sums, const __m256i& u, const __m256i& s) {
  sums = _mm256_dpbusd_epi32(sums, u, s);
}

#if __has_include(<avxvnniintrin.h>)  // or the assembler does not know it either
__attribute__((target("avx2"))) void add_vex(__m256i& sums, const __m256i& u, const __m256i& s) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(u), "x"(s));
}
#endif

#elif defined(__aarch64__)

// sdot: sums of 4 products of signed bytes, added to 32 bits.
std::array<int32_t, 4> dot(std::array<int32_t, 4> sums, const int8_t* a, const int8_t* b) {
  for (size_t i = 0; i < 16; i++) sums[i / 4] += a[i] * b[i];
  return sums;
}

// smmla: two rows of 8 signed bytes times two others, added to 32 bits.
std::array<int32_t, 4> mmla(std::array<int32_t, 4> sums, const int8_t* a, const int8_t* b) {
  for (size_t i = 0; i < 4; i++)
    for (size_t k = 0; k < 8; k++) sums[i] += a[i / 2 * 8 + k] * b[i % 2 * 8 + k];
  return sums;
}

void neon_instructions(Random& random) {
  const Bytes32<int8_t> a = bytes<int8_t>(random, -128, 127), b = bytes<int8_t>(random, -128, 127);
  std::array<int16_t, 8> sums{}, found;
  for (int16_t& x : sums) x = int16_t(random.bits());
  vst1q_s16(found.data(), vmlal_s8(vld1q_s16(sums.data()), vld1_s8(a.data()), vld1_s8(b.data())));
  expect(found == add_products(sums, a.data(), b.data()), "models: smlal");
}

__attribute__((target("arch=armv8.2-a+dotprod"))) void dot_instruction(Random& random) {
  const Bytes32<int8_t> a = bytes<int8_t>(random, -128, 127), b = bytes<int8_t>(random, -128, 127);
  const std::array<int32_t, 4> sums{1, -70000, int32_t(random.bits() / 4), -int32_t(random.bits() / 4)};
  std::array<int32_t, 4> found;
  vst1q_s32(found.data(), vdotq_s32(vld1q_s32(sums.data()), vld1q_s8(a.data()), vld1q_s8(b.data())));
  expect(found == dot(sums, a.data(), b.data()), "models: sdot");
}

__attribute__((target("arch=armv8.2-a+i8mm"))) void mmla_instruction(Random& random) {
  const Bytes32<int8_t> a = bytes<int8_t>(random, -128, 127), b = bytes<int8_t>(random, -128, 127);
  const std::array<int32_t, 4> sums{1, -70000, int32_t(random.bits() / 4), -int32_t(random.bits() / 4)};
  std::array<int32_t, 4> found;
  vst1q_s32(found.data(), vmmlaq_s32(vld1q_s32(sums.data()), vld1q_s8(a.data()), vld1q_s8(b.data())));
  expect(found == mmla(sums, a.data(), b.data()), "models: smmla");
}

#endif

}  // namespace

void test_models() {
  Random random(1);
  for (int i = 0; i < 2000; i++) {
    int4_by_maddubs(random, i < 20);
    int8_by_sign(random, i < 20);
    codes_by_widening(random, 8, 0, 15, i < 20);
    codes_by_widening(random, 2, -128, 127, i < 20);
  }
  for (bool extreme : {false, true}) {
    codes_by_dpbusd(random, 8, 15, extreme);
    codes_by_dpbusd(random, 128, 255, extreme);
  }
  for (const Kernels* kernels : tables()) {
    const std::string name = kernels->name;
    for (int i = 0; i < 2000; i++) {
#if defined(__x86_64__)
      if (name == "avx2") avx2_instructions(random);
#if __has_include(<avxvnniintrin.h>)
      if (name == "avxvnni") dot_instruction(random, add_vex);
#endif
      if (name == "avx512") dot_instruction(random, add_evex);
#elif defined(__aarch64__)
      if (name == "neon") neon_instructions(random);
      if (name == "dotprod") dot_instruction(random);
      if (name == "i8mm") mmla_instruction(random);
#endif
    }
  }
}

}  // namespace edgeloop::test
