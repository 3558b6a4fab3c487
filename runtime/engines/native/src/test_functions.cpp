// The functions and norms of the portable table against doubles: how near, and what they make of the odd numbers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "test.h"

namespace edgeloop::test {

namespace {

constexpr double PI = 3.14159265358979323846;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Exact {
  Function function;
  const char* name;
  double (*of)(double);
  double relative, absolute;  // |error| ≤ relative · |value| + absolute, where the value is an ordinary float
  float from, to;
};

// Bounds are what was measured over these ranges, and a tenth. gelu and gelu_tanh lose what 1 + erf loses below zero.
const Exact EXACT[] = {
  {Function::silu, "silu", [](double x) { return x * sigmoid(x); }, 4e-7, 1e-38, -80, 80},
  {Function::gelu, "gelu", [](double x) { return x * 0.5 * (1 + std::erf(x * std::sqrt(0.5))); }, 3e-7, 3e-7, -12, 12},
  {Function::gelu_tanh, "gelu_tanh", [](double x) { return x * sigmoid(2 * std::sqrt(2 / PI) * (x + 0.044715 * x * x * x)); }, 2e-6, 1e-12, -8, 8},
  {Function::relu2, "relu2", [](double x) { return x > 0 ? x * x : 0; }, 1e-7, 0, -100, 100},
  {Function::sigmoid, "sigmoid", sigmoid, 4e-7, 1e-38, -80, 80},
  {Function::tanh, "tanh", [](double x) { return std::tanh(x); }, 3e-7, 0, -12, 12},
  {Function::softplus, "softplus", [](double x) { return std::log1p(std::exp(x)); }, 3e-7, 1e-38, -80, 80},
  {Function::relu, "relu", [](double x) { return x > 0 ? x : 0; }, 0, 0, -100, 100},
  {Function::exp, "exp", [](double x) { return std::exp(x); }, 2.5e-7, 2e-45, -110, 88.7f},
};

void near_exact(const Kernels& kernels) {
  constexpr int n = 40000;
  std::vector<float> x(n), y(n);
  for (const Exact& f : EXACT) {
    // Evenly over the range, and sizes down to 1e-6 where functions are linear.
    for (int i = 0; i < n; i++) {
      const float t = (float(i) + 0.5f) / n;
      x[size_t(i)] = i % 2 ? f.from + (f.to - f.from) * t : std::copysign(std::exp(-14 * t), i % 4 ? 1.f : -1.f);
    }
    kernels.act[int(f.function)](x.data(), n, y.data());
    double worst = 0;
    for (int i = 0; i < n; i++) {
      const double wanted = f.of(double(x[size_t(i)]));
      worst = std::max(worst, std::fabs(double(y[size_t(i)]) - wanted) / (f.relative * std::fabs(wanted) + f.absolute + 1e-300));
    }
    expect(worst <= 1, std::string(f.name) + ": its error is " + std::to_string(worst) + " of the bound");
  }
}

float of(const Kernels& kernels, Function f, float x) {
  float y;
  kernels.act[int(f)](&x, 1, &y);
  return y;
}

void odd_numbers(const Kernels& kernels) {
  for (const Exact& f : EXACT) expect(std::isnan(of(kernels, f.function, NAN)), std::string(f.name) + " of NaN is a number");
  expect(of(kernels, Function::exp, INFINITY) == INFINITY && of(kernels, Function::exp, 89.f) == INFINITY, "exp of much");
  expect(of(kernels, Function::exp, -INFINITY) == 0 && of(kernels, Function::exp, -104.f) == 0, "exp of little");
  expect(of(kernels, Function::exp, 0.f) == 1 && of(kernels, Function::exp, -100.f) > 0, "exp of 0, and a denormal result");
  expect(of(kernels, Function::tanh, INFINITY) == 1 && of(kernels, Function::tanh, -INFINITY) == -1, "tanh of infinity");
  expect(of(kernels, Function::sigmoid, -INFINITY) == 0 && of(kernels, Function::sigmoid, INFINITY) == 1, "sigmoid of infinity");
  expect(of(kernels, Function::softplus, INFINITY) == INFINITY, "softplus of infinity");
  const float denormal = 1e-40f;
  expect(of(kernels, Function::tanh, denormal) == denormal, "tanh of a denormal");
}

// The sum that kernels.h and docs/native.md mean by one over lanes: number i to sum i / 16 % 4, lane i % 16; the four sums
// are added, and lanes are folded.
float folded(const std::vector<float>& x) {
  float s[4][16] = {};
  for (size_t i = 0; i < x.size(); i++) s[i / 16 % 4][i % 16] += x[i];
  for (int i = 0; i < 16; i++) s[0][i] = (s[0][i] + s[1][i]) + (s[2][i] + s[3][i]);
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; i++) s[0][i] += s[0][i + n];
  return s[0][0];
}

std::vector<float> squared(std::vector<float> x) {
  for (float& v : x) v = v * v;
  return x;
}

void norms(const Kernels& kernels) {
  Random random(3);
  for (int n : {1, 5, 16, 64, 77, 960}) {
    const std::vector<float> x = numbers(random, n, Sort::plain), w = numbers(random, n, Sort::plain), b = numbers(random, n, Sort::plain);
    double mean = 0, squares = 0, variance = 0;
    for (float v : x) mean += v / double(n), squares += double(v) * v / n;
    for (float v : x) variance += (v - mean) * (v - mean) / n;
    std::vector<float> y(size_t(n), 0.f), z(size_t(n), 0.f);
    kernels.rms_norm(x.data(), n, 1e-5f, w.data(), y.data());
    kernels.layer_norm(x.data(), n, 1e-5f, w.data(), b.data(), z.data());
    double worst = 0;
    for (size_t i = 0; i < size_t(n); i++) {
      worst = std::max(worst, std::fabs(y[i] - x[i] / std::sqrt(squares + 1e-5) * w[i]));
      worst = std::max(worst, std::fabs(z[i] - ((x[i] - mean) / std::sqrt(variance + 1e-5) * w[i] + b[i])));
    }
    std::vector<float> rms = x, layer = x;
    const float n_ = float(n), r = 1.f / std::sqrt(folded(squared(x)) / n_ + 1e-5f), middle = folded(x) / n_;
    for (size_t i = 0; i < x.size(); i++) rms[i] = (x[i] * r) * w[i], layer[i] = x[i] - middle;
    const float r2 = 1.f / std::sqrt(folded(squared(layer)) / n_ + 1e-5f);
    for (size_t i = 0; i < x.size(); i++) layer[i] = (layer[i] * r2) * w[i] + b[i];
    expect(same(y, rms) && same(z, layer), "a norm of " + std::to_string(n) + " has other bits than its definition");
    expect(worst < 2e-6, "a norm of " + std::to_string(n) + " is off by " + std::to_string(worst * 1e6) + "e-6");
  }
}

void choices(const Kernels& kernels) {
  Random random(4);
  for (int n : {1, 3, 16, 17, 50, 1000}) {
    std::vector<float> x = numbers(random, n, Sort::plain), y(x.size());
    for (float& v : x) v *= 20;
    kernels.softmax(x.data(), n, y.data());
    double top = *std::max_element(x.begin(), x.end()), total = 0, worst = 0;
    for (float v : x) total += std::exp(v - top);
    for (size_t i = 0; i < x.size(); i++) worst = std::max(worst, std::fabs(y[i] - std::exp(x[i] - top) / total));
    expect(worst < 1e-6, "softmax of " + std::to_string(n));
    std::vector<float> shares = x;
    for (float& v : shares) v = v - float(top);
    kernels.act[int(Function::exp)](shares.data(), n, shares.data());
    const float all = folded(shares);
    for (float& v : shares) v = v / all;
    expect(same(y, shares), "softmax of " + std::to_string(n) + " has other bits than its definition");
    for (int trial = 0; trial < 50; trial++) {
      x = numbers(random, n, trial < 40 ? Sort::plain : trial < 45 ? Sort::holes : Sort::zeros);
      if (trial % 2) x[size_t(random.below(n))] = x[size_t(random.below(n))] = 2;  // two of the largest
      int wanted = 0;
      for (int i = 1; i < n; i++) {
        const bool nan = std::isnan(x[size_t(i)]), had = std::isnan(x[size_t(wanted)]);
        if (!had && (nan || x[size_t(i)] > x[size_t(wanted)])) wanted = i;
      }
      const Best best = kernels.argmax(x.data(), n);
      expect(best.index == wanted && memcmp(&best.value, &x[size_t(wanted)], 4) == 0, "argmax of " + std::to_string(n));
      const int cut = random.below(n);
      if (cut > 0) {
        Best rest = kernels.argmax(x.data() + cut, n - cut);
        rest.index += cut;
        expect(better(rest, kernels.argmax(x.data(), cut)).index == wanted, "argmax in two pieces");
      }
    }
  }
}

// The elementwise kernels, number by number as kernels.h has them.
void elementwise(const Kernels& kernels) {
  Random random(7);
  for (int n : {2, 18, 64, 75}) {
    const std::vector<float> a = numbers(random, n, Sort::plain), b = numbers(random, n, Sort::plain), w = numbers(random, n, Sort::plain);
    const int dims = n / 4 * 2;
    std::vector<float> wanted[9], found[9];
    for (int i = 0; i < 9; i++) wanted[i] = found[i] = a;
    for (size_t i = 0; i < a.size(); i++) {
      wanted[0][i] = a[i] + b[i];
      wanted[1][i] = a[i] * b[i];
      wanted[2][i] = (a[i] * 1.3f) * w[i] + 0.2f;
      wanted[3][i] = a[i] * 1.3f + 0.2f;
      wanted[4][i] = a[i] + 0.7f * b[i];
      wanted[5][i] = 0.3f * a[i] + (1.f - 0.3f) * b[i];
      wanted[6][i] = a[i] / 2.5f;
    }
    kernels.act[int(Function::tanh)](wanted[6].data(), n, wanted[6].data());
    for (float& v : wanted[6]) v = 2.5f * v;
    for (int i = 0; i < dims / 2; i++) {
      const size_t j = size_t(i), far = size_t(i + dims / 2), even = 2 * j;
      wanted[7][j] = a[j] * b[j] - a[far] * w[j], wanted[7][far] = a[far] * b[j] + a[j] * w[j];
      wanted[8][even] = a[even] * b[j] - a[even + 1] * w[j], wanted[8][even + 1] = a[even + 1] * b[j] + a[even] * w[j];
    }
    const float *pa = a.data(), *pb = b.data(), *pw = w.data();
    kernels.add(pa, pb, n, found[0].data());
    kernels.mul(pa, pb, n, found[1].data());
    kernels.scale(pa, n, 1.3f, pw, 0.2f, found[2].data());
    kernels.scale(pa, n, 1.3f, nullptr, 0.2f, found[3].data());
    kernels.add_scaled(pb, n, 0.7f, found[4].data());
    kernels.blend(pa, pb, n, 0.3f, found[5].data());
    kernels.softcap(pa, n, 2.5f, found[6].data());
    kernels.rotate_halves(pa, n, dims, pb, pw, found[7].data());
    kernels.rotate_pairs(pa, n, dims, pb, pw, found[8].data());
    for (int i = 0; i < 9; i++) expect(same(wanted[i], found[i]), "elementwise kernel " + std::to_string(i) + " of " + std::to_string(n));
  }
}

// Every float16, and floats on both sides of each.
void halves() {
  for (uint32_t h = 0; h < 0x10000; h++) {
    const float x = float_from_half(uint16_t(h));
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    double wanted = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) wanted = fraction ? NAN : INFINITY;
    if (h & 0x8000) wanted = -wanted;
    expect(std::isnan(wanted) ? std::isnan(x) : double(x) == wanted && std::signbit(x) == bool(h >> 15), "a float16 becomes another float");
    if (!std::isnan(wanted)) expect(half_from_float(x) == h, "a float16 does not come back");
    if (exponent == 31 || (h & 0x8000)) continue;
    const float next = exponent == 30 && fraction == 1023 ? 65536.f : float_from_half(uint16_t(h + 1)), middle = (x + next) / 2;
    expect(half_from_float(middle) == (h & 1 ? h + 1 : h), "the middle of two float16 is not rounded to the even one");
    expect(half_from_float(std::nextafter(middle, 0.f)) == h && half_from_float(std::nextafter(middle, 1e9f)) == h + 1, "a float is not rounded to the nearest float16");
  }
}

}  // namespace

void test_functions() {
  const Kernels& kernels = *kernels_named("portable");
  near_exact(kernels);
  odd_numbers(kernels);
  norms(kernels);
  choices(kernels);
  elementwise(kernels);
  halves();
}

}  // namespace edgeloop::test
