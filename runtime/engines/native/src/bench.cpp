// Micro-benchmarks of the kernels, one thread: bench [table or section ...]. Beside each product what the processor reaches: bytes a
// second of reading as much memory, products a second of multiplying registers. Times are the best of many, in
// the thread's own time, so that other programs disturb less; they still share caches and memory with it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench_roofs.h"

using namespace edgeloop;
using namespace edgeloop::bench;

namespace {

struct Part {
  int rows, columns;
};
// The matrices of a layer of 360M parameters: qkv, o, gate and up, down.
constexpr Part LAYER[] = {{1600, 960}, {960, 960}, {5120, 960}, {960, 2560}};

const char* const KIND_NAMES[] = {"float32", "float16", "int8", "int4"};

// As many layers as fill the memory, each matrix after the other, as a pass reads them.
struct Weights {
  Weights(Kind kind, int group) : kind(kind) {
    fill(kind);
    const uint8_t* p = memory();
    const size_t scale_bytes = MEMORY / 8;
    static std::vector<uint16_t> scales(scale_bytes / 2, 0x1c00);
    const size_t room = MEMORY - (size_t{1} << 20);
    size_t used = 0, scale = 0;
    for (;;) {
      std::vector<Matrix> layer;
      for (Part part : LAYER) {
        Matrix w{p + used, scales.data() + scale, part.rows, part.columns, group ? group : part.columns, kind};
        used += tile_bytes(w) * size_t(tiles_of(w));
        scale += size_t(tiles_of(w) * groups_of(w) * 16);
        layer.push_back(w);
      }
      if (used > room) break;
      matrices.insert(matrices.end(), layer.begin(), layer.end());
      bytes = double(used) + double(kind == Kind::int4 || kind == Kind::int8 ? scale * 2 : 0);
      layers++;
    }
    for (const Matrix& w : matrices) products += double(w.rows) * w.columns;
  }
  Kind kind;
  std::vector<Matrix> matrices;
  double bytes = 0, products = 0;
  int layers = 0;
};

void products(const Kernels& kernels, Kind kind, int group, bool float_activations, double bandwidth, double rate) {
  const Weights weights(kind, group);
  constexpr int ROWS[] = {1, 2, 3, 4, 6, 8, 12, 16, 32};
  std::vector<float> x(32 * 2560), y(32 * 5120), scales(32 * 256);
  std::vector<int8_t> codes(32 * 2560);
  std::vector<int32_t> sums(32 * 256);
  for (size_t i = 0; i < x.size(); i++) x[i] = float(int(i * 7919 % 2001) - 1000) * 1e-3f;
  for (size_t i = 0; i < codes.size(); i++) codes[i] = int8_t(int(i * 31 % 255) - 127);
  for (float& s : scales) s = 0.01f;
  double first = 0;
  for (int rows : ROWS) {
    if (float_activations && rows > 8) break;
    const double seconds = best([&] {
      for (const Matrix& w : weights.matrices) {
        const Output out{y.data(), w.rows, nullptr, false};
        if (float_activations) kernels.product_floats(w, x.data(), w.columns, rows, 0, tiles_of(w), out);
        else kernels.product_codes(w, {codes.data(), scales.data(), sums.data()}, rows, 0, tiles_of(w), out);
      }
    });
    if (rows == 1) first = seconds;
    const double gb = weights.bytes / seconds, ops = 2 * weights.products * rows / seconds;
    printf("  %-8s g%-4d %s %2d rows  %7.3f ms a layer  x%5.2f  %6.1f GB/s (%3.0f%%)  %7.0f GOP/s", KIND_NAMES[int(kind)], group,
           float_activations ? "float" : "int8 ", rows, seconds / weights.layers * 1e3, seconds / first, gb * 1e-9, 100 * gb / bandwidth, ops * 1e-9);
    if (rate > 0 && !float_activations) printf(" (%3.0f%%)", 100 * ops / rate);
    printf("\n");
  }
}

void attention(const Kernels& kernels, CacheKind kind) {
  constexpr int heads = 3, kv_heads = 5, dims = 64;
  const char* names[] = {"float32", "float16", "int8", "int4"};
  const size_t part = cache_part(kind, dims), block = 2 * kv_heads * part;
  fill(kind == CacheKind::float32 ? Kind::float32 : Kind::float16);
  std::vector<float> q(16 * heads * dims, 0.1f), y(q.size()), scratch(attend_scratch(4096, dims));
  for (int rows : {1, 16})
    for (int tokens : {128, 1024, 4096}) {
      const size_t count = size_t((tokens + 15) / 16), layer = block * count, layers = rows > 1 ? 1 : std::max<size_t>(1, MEMORY / 2 / layer);
      std::vector<const void*> blocks;
      for (size_t i = 0; i < layers * count; i++) blocks.push_back(memory() + i * block);
      const std::vector<int32_t> first(16, 0), last(16, tokens);
      const double seconds = best([&] {
        for (size_t l = 0; l < layers; l++)
          for (int h = 0; h < kv_heads; h++) {
            const size_t keys = 2 * part * size_t(h);
            Attention a{q.data(), y.data(), heads * dims, heads * dims, rows, heads, dims, first.data(), last.data(),
                  {blocks.data() + l * count, keys, keys + part}, 0.125f, 0, scratch.data()};
            kernels.attend[int(kind)](a);
          }
      });
      printf("  attend %s %4d tokens, 3 heads a KV head, %2d rows: %8.2f us a layer, %5.1f GB/s\n", names[int(kind)], tokens, rows,
             seconds / double(layers) * 1e6, double(layer * layers) / seconds * 1e-9);
    }
}

template <class Work>
void vector(const char* name, int n, Work work) {
  constexpr int REPEATS = 2000;
  const double seconds = best([&] {
    for (int i = 0; i < REPEATS; i++) work();
  });
  printf("  %-14s %5d  %7.3f us  %6.2f numbers a ns\n", name, n, seconds / REPEATS * 1e6, n * REPEATS / seconds * 1e-9);
}

void vectors(const Kernels& k) {
  constexpr int n = 960;
  std::vector<float> x(n), y(n), w(n, 1.f), scales(n);
  std::vector<int8_t> codes(n);
  std::vector<int32_t> sums(n);
  std::vector<uint16_t> halves(n);
  for (size_t i = 0; i < n; i++) x[i] = float(int(i * 7919 % 2001) - 1000) * 3e-3f;
  const char* names[] = {"silu", "gelu", "gelu_tanh", "relu2", "sigmoid", "tanh", "softplus", "exp", "relu"};
  for (int f = 0; f < FUNCTION_COUNT; f++) vector(names[f], n, [&] { k.act[f](x.data(), n, y.data()); });
  vector("quantize g128", n, [&] { k.quantize(x.data(), n, 128, 8, codes.data(), scales.data(), sums.data()); });
  vector("quantize g32", n, [&] { k.quantize(x.data(), n, 32, 8, codes.data(), scales.data(), sums.data()); });
  vector("rms_norm", n, [&] { k.rms_norm(x.data(), n, 1e-6f, w.data(), y.data()); });
  vector("layer_norm", n, [&] { k.layer_norm(x.data(), n, 1e-6f, w.data(), w.data(), y.data()); });
  vector("add", n, [&] { k.add(x.data(), w.data(), n, y.data()); });
  vector("mul", n, [&] { k.mul(x.data(), w.data(), n, y.data()); });
  vector("rotate_halves", n, [&] { k.rotate_halves(x.data(), n, n, w.data(), w.data(), y.data()); });
  vector("rotate_pairs", n, [&] { k.rotate_pairs(x.data(), n, n, w.data(), w.data(), y.data()); });
  vector("softmax", n, [&] { k.softmax(x.data(), n, y.data()); });
  vector("argmax", n, [&] { sink = uint64_t(k.argmax(x.data(), n).index); });
  vector("to_half", n, [&] { k.to_half(x.data(), n, halves.data()); });
  vector("to_float", n, [&] { k.to_float(halves.data(), n, y.data()); });
  const Matrix table{memory(), reinterpret_cast<const uint16_t*>(memory()), 4096, n, 128, Kind::int4};
  int row = 0;
  vector("matrix_row", n, [&] { k.matrix_row(table, row = (row + 677) % 4096, 1.f, y.data()); });
}

}  // namespace

int main(int count, char** names) {
  const std::vector<std::string> sections = {"int4", "int8", "floats", "vectors", "attention"};
  std::vector<std::string> tables;
  for (int i = 0; const char* name = kernels_at(i); i++) tables.push_back(name);
  auto wanted = [&](const std::string& name, const std::vector<std::string>& among) {
    bool any = false;
    for (int i = 1; i < count; i++) {
      if (name == names[i]) return true;
      any |= std::find(among.begin(), among.end(), names[i]) != among.end();
    }
    return !any;
  };
  fill(Kind::int4);
  const double bandwidth = read_roof();
  printf("reading memory: %.1f GB/s on one thread\n", bandwidth * 1e-9);
  for (const std::string& name : tables) {
    if (!wanted(name, tables)) continue;
    const Kernels* kernels = kernels_named(name.c_str());
    if (!kernels) {
      printf("%s: skipped, this processor does not run it\n", name.c_str());
      continue;
    }
    const double rate = multiply_roof(name);
    if (rate > 0) printf("%s: multiplying registers %.0f GOP/s\n", name.c_str(), rate * 1e-9);
    else printf("%s\n", name.c_str());
    if (wanted("int4", sections))
      for (int group : {128, 32}) products(*kernels, Kind::int4, group, false, bandwidth, rate);
    if (wanted("int8", sections))
      for (int group : {128, 0}) products(*kernels, Kind::int8, group, false, bandwidth, rate);
    if (wanted("floats", sections)) {
      for (Kind kind : {Kind::float32, Kind::float16, Kind::int8, Kind::int4}) products(*kernels, kind, 128, true, bandwidth, rate);
    }
    if (wanted("vectors", sections)) vectors(*kernels);
    if (wanted("attention", sections)) {
      for (CacheKind kind : {CacheKind::float32, CacheKind::float16, CacheKind::int8, CacheKind::int4}) attention(*kernels, kind);
    }
  }
  return 0;
}
