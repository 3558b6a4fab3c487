// What the C++ tests share: failures by name, inputs of every sort, and matrices in both their layouts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace edgeloop::test {

// Print and count what does not hold.
void expect(bool holds, const std::string& what);
int failures();

// The same numbers on every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  uint32_t bits();
  int below(int n) { return int(bits() % uint32_t(n)); }
  float uniform() { return float(bits() >> 8) * 0x1p-24f; }  // from 0 to 1

 private:
  uint64_t state_;
};

// plain: -1 to 1. wide: sizes from 2^-40 to 2^40. huge: up to the largest float. tiny: denormals. zeros: of both signs. holes: plain
// ones with NaN and infinities among them. spiked: one large number among small ones.
enum class Sort { plain, wide, huge, tiny, zeros, holes, spiked };
constexpr Sort SORTS[] = {Sort::plain, Sort::wide, Sort::huge, Sort::tiny, Sort::zeros, Sort::holes, Sort::spiked};
std::vector<float> numbers(Random& random, int n, Sort sort);

// Equal bits; any NaN is as good as another.
bool same(const std::vector<float>& a, const std::vector<float>& b);

// A matrix [rows, columns], as it is written down and as the kernels read it.
struct TestMatrix {
  TestMatrix(Random& random, Kind kind, int rows, int columns, int group);
  TestMatrix(const TestMatrix&) = delete;
  float value(int n, int k) const;   // of float32, or a code times its scale
  int code(int n, int k) const { return codes[size_t(n) * size_t(matrix.columns) + size_t(k)]; }  // around zero
  float scale(int n, int g) const;

  Matrix matrix;
  std::vector<int> codes;            // [rows][columns]; random and extreme ones
  std::vector<float> floats;         // the same of float kinds
  std::vector<uint16_t> row_scales;  // [rows][groups]

 private:
  std::vector<uint8_t> tiles_, tile_scales_;
};

float float_from_half(uint16_t half);
uint16_t half_from_float(float x);

// The tables that this processor runs; those that it does not are named once.
const std::vector<const Kernels*>& tables();

// Each in a file of its own.
void test_models();     // scalar models of special instructions
void test_products();   // against loops over the matrix as it is written down
void test_functions();  // against doubles
void test_tables();     // every kernel of every table against the portable one
void test_attention();  // against doubles; rows do not depend on others
void test_amx();        // products by tiles, on a model of them

}  // namespace edgeloop::test
