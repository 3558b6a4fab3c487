// Products against loops over the matrix as it is written down, bit by bit: what kernels.h says of each, once more.
#include <algorithm>
#include <cmath>

#include "test.h"

namespace edgeloop::test {

namespace {

struct Shape {
  int rows, columns, group;
};

// Odd sizes, groups that do not divide, single columns; the last are the sizes of a real model.
constexpr Shape SHAPES[] = {{16, 32, 32},  {1, 1, 16},    {17, 20, 32},  {48, 72, 32},   {5, 130, 64},   {33, 200, 128},
                             {16, 16, 16},  {40, 100, 100}, {7, 260, 260}, {64, 960, 128}, {32, 1023, 128}, {16, 2560, 32}};

// One row of a group by its definition.
struct Quantized {
  std::vector<int> codes;
  std::vector<float> scales;
};

Quantized quantized(const float* x, int n, int group) {
  Quantized q;
  for (int k = 0; k < n; k += group) {
    const int end = std::min(n, k + group);
    float peak = 0;
    bool finite = true;
    for (int i = k; i < end; i++) peak = std::max(peak, std::fabs(x[i])), finite &= std::isfinite(x[i]);
    const float per_step = 127.f / peak;
    const bool zero = !finite || peak == 0 || std::isinf(per_step);
    q.scales.push_back(!finite ? NAN : zero ? 0.f : peak / 127.f);
    for (int i = k; i < end; i++) q.codes.push_back(zero ? 0 : int(std::nearbyint(x[i] * per_step)));
  }
  return q;
}

std::string named(const Kernels& kernels, const char* what, const TestMatrix& w, int rows) {
  const char* kinds[] = {"float32", "float16", "int8", "int4"};
  return std::string(kernels.name) + " " + what + " " + kinds[int(w.matrix.kind)] + " [" + std::to_string(w.matrix.rows) + ", " +
         std::to_string(w.matrix.columns) + "] in groups of " + std::to_string(w.matrix.group) + ", " + std::to_string(rows) + " rows";
}

// Rows of codes as `quantize` makes them; checked against their definition.
struct Rows {
  Rows(const Kernels& kernels, const Matrix& w, const std::vector<float>& x, int rows) {
    const size_t stride = size_t(padded(w.columns)), groups = size_t(groups_of(w));
    codes.assign(stride * size_t(rows), 99), scales.assign(groups * size_t(rows), 99), sums.assign(groups * size_t(rows), 99);
    for (size_t m = 0; m < size_t(rows); m++) {
      const float* row = x.data() + m * size_t(w.columns);
      const int zero = zero_code(w.kind);
      kernels.quantize(row, w.columns, w.group, zero, &codes[m * stride], &scales[m * groups], &sums[m * groups]);
      const Quantized wanted = quantized(row, w.columns, w.group);
      bool right = same(wanted.scales, {&scales[m * groups], &scales[m * groups] + groups});
      for (size_t k = 0; k < stride; k++) right &= codes[m * stride + k] == (k < wanted.codes.size() ? wanted.codes[k] : 0);
      for (size_t g = 0; g < groups; g++) {
        int sum = 0;
        for (size_t k = g * size_t(w.group); k < std::min((g + 1) * size_t(w.group), wanted.codes.size()); k++) sum += wanted.codes[k];
        right &= sums[m * groups + g] == -zero * sum;
      }
      expect(right, std::string(kernels.name) + " quantize, " + std::to_string(w.columns) + " in groups of " + std::to_string(w.group));
    }
  }
  Codes view(const Matrix& w, int first) {
    return {codes.data() + size_t(first) * size_t(padded(w.columns)), scales.data() + first * groups_of(w), sums.data() + first * groups_of(w)};
  }
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
};

// y [rows][N] from products; what is not to be written stays.
std::vector<float> wanted_of_codes(const TestMatrix& w, const Rows& x, int rows) {
  std::vector<float> y;
  const int groups = groups_of(w.matrix), stride = padded(w.matrix.columns), group = w.matrix.group;
  for (int m = 0; m < rows; m++)
    for (int n = 0; n < w.matrix.rows; n++) {
      float acc = 0;
      for (int g = 0; g < groups; g++) {
        int64_t sum = 0;
        for (int k = g * group; k < std::min((g + 1) * group, w.matrix.columns); k++) sum += w.code(n, k) * x.codes[size_t(m * stride + k)];
        const float both = w.scale(n, g) * x.scales[size_t(m * groups + g)];
        const float part = float(int32_t(sum)) * both;
        acc = acc + part;
      }
      y.push_back(acc);
    }
  return y;
}

std::vector<float> wanted_of_floats(const TestMatrix& w, const std::vector<float>& x, int rows) {
  std::vector<float> y;
  for (int m = 0; m < rows; m++)
    for (int n = 0; n < w.matrix.rows; n++) {
      float s[4] = {0, 0, 0, 0};
      for (int k = 0; k < w.matrix.columns; k++) {
        const float part = x[size_t(m) * size_t(w.matrix.columns) + size_t(k)] * w.value(n, k);
        s[k % 4] = s[k % 4] + part;
      }
      y.push_back((s[0] + s[1]) + (s[2] + s[3]));
    }
  return y;
}

// All tiles at once, with and without a bias and an addition; then tiles and rows in random pieces.
template <class Product>
void check(const std::string& what, const TestMatrix& w, const std::vector<float>& wanted, int rows, Random& random, Product product) {
  const int N = w.matrix.rows, tiles = tiles_of(w.matrix), stride = N + 3;
  const std::vector<float> bias = numbers(random, N, Sort::plain);
  for (int form = 0; form < 4; form++) {
    std::vector<float> y = numbers(random, rows * stride, Sort::plain), expected = y;
    for (int m = 0; m < rows; m++)
      for (int n = 0; n < N; n++) {
        float v = wanted[size_t(m * N + n)];
        if (form & 1) v = v + bias[size_t(n)];
        float& to = expected[size_t(m * stride + n)];
        to = form & 2 ? to + v : v;
      }
    const float* b = form & 1 ? bias.data() : nullptr;
    if (form == 0) {
      for (int m = 0, n; m < rows; m += n) {
        n = 1 + random.below(rows - m);
        for (int t = 0, c; t < tiles; t += c) {
          c = 1 + random.below(tiles - t);
          product(m, n, t, t + c, Output{y.data() + m * stride, stride, b, false});
        }
      }
    } else {
      product(0, rows, 0, tiles, Output{y.data(), stride, b, (form & 2) != 0});
    }
    expect(same(y, expected), what + (form == 0 ? " in pieces" : form & 2 ? " added" : ""));
  }
}

void one(const Kernels& kernels, Kind kind, Shape shape, int rows, Sort sort, Random& random) {
  const TestMatrix w(random, kind, shape.rows, shape.columns, shape.group);
  const std::vector<float> x = numbers(random, rows * shape.columns, sort);
  if (kind == Kind::int8 || kind == Kind::int4) {
    Rows codes(kernels, w.matrix, x, rows);
    check(named(kernels, "product_codes", w, rows), w, wanted_of_codes(w, codes, rows), rows, random,
          [&](int m, int n, int t, int last, const Output& out) { kernels.product_codes(w.matrix, codes.view(w.matrix, m), n, t, last, out); });
  }
  check(named(kernels, "product_floats", w, rows), w, wanted_of_floats(w, x, rows), rows, random,
        [&](int m, int n, int t, int last, const Output& out) {
            kernels.product_floats(w.matrix, x.data() + m * shape.columns, shape.columns, n, t, last, out);
        });
  for (int n = 0; n < shape.rows; n += 5) {
    std::vector<float> row(size_t(shape.columns), 0.f), wanted;
    kernels.matrix_row(w.matrix, n, 1.5f, row.data());
    for (int k = 0; k < shape.columns; k++) wanted.push_back(w.value(n, k) * 1.5f);
    expect(same(row, wanted), named(kernels, "matrix_row", w, 1));
  }
}

}  // namespace

void test_products() {
  Random random(2);
  for (const Kernels* kernels : tables())
    for (Kind kind : {Kind::float32, Kind::float16, Kind::int8, Kind::int4}) {
      for (Shape shape : SHAPES) one(*kernels, kind, shape, 1 + random.below(4), Sort::plain, random);
      for (int rows = 1; rows <= 27; rows++) one(*kernels, kind, {20, 72, 32}, rows, Sort::plain, random);
      for (int rows : {13, 18, 30}) one(*kernels, kind, {76, 40, 16}, rows, Sort::plain, random);  // two tiles at once, and one
      for (Sort sort : SORTS) one(*kernels, kind, {20, 100, 32}, 3, sort, random);
    }
}

}  // namespace edgeloop::test
