// The kernels of the lane engine: everything that reads a weight or works on a vector of floats, as a table of
// functions, one table for each instruction set. `portable.cpp` is the definition: every other table gives the same
// bits for every input, so which one runs, how many rows are worked on at once, and how the work is cut are free
// choices. Only which of many NaNs a NaN is may differ.
//
// What makes that so (docs/native.md, "Numerics"):
//   - sums of int8 products are whole numbers, exact in any order;
//   - floats are worked on in 16 lanes whatever the width of a register, sums over lanes are a fixed tree;
//   - a product and a sum are two roundings everywhere, never one (no fma), division and square root are the true ones;
//   - exp, tanh, erf and log1p are our own, made of these operations.
// A function reads and writes only what its comment says; pointers need no alignment but where one is named. In-place
// means that y may be the same pointer as x; other overlaps are not allowed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgeloop {

constexpr int32_t LANES = 16;     // floats that are worked on at once, and rows of a matrix in a tile
constexpr int32_t LONGEST_GROUP = 65536;  // columns of a group: 255 * 127 * this many still fit into int32

// How the numbers of a matrix [rows N, columns K] are kept. Tiles of 16 rows, one after the other, the last one
// filled up with zeros (of codes: with `zero_code`); K' is K rounded up to a multiple of 16, filled up likewise.
//   float32, float16  [N/16][K][16]          numbers of 16 rows at a column (K as it is)
//   int8              [N/16][K'/4][16][4]    unsigned bytes, value (byte - 128) * scale
//   int4              [N/16][K'/8][16][4]    value (nibble - 8) * scale; low nibbles columns 0 to 3 of 8, high ones 4 to 7
enum class Kind : uint8_t { float32 = 0, float16 = 1, int8 = 2, int4 = 3 };

struct Matrix {
  const void* data;        // tiles, 64-byte aligned
  const uint16_t* scales;  // float16 [N/16][groups][16] for int8 and int4, 32-byte aligned; else null
  int32_t rows;            // N
  int32_t columns;         // K
  int32_t group;           // G: columns that share a scale, a multiple of 16, or at least K: one scale for a row
  Kind kind;
};

// static: each file that is compiled for an instruction set of its own must keep its own copies.
static constexpr int32_t round_up(int32_t n, int32_t to) { return (n + to - 1) / to * to; }
static constexpr int32_t padded(int32_t n) { return round_up(n, LANES); }
static constexpr int32_t group_count(int32_t columns, int32_t group) { return (columns + group - 1) / group; }
static constexpr int32_t zero_code(Kind kind) { return kind == Kind::int4 ? 8 : 128; }
static inline int32_t groups_of(const Matrix& w) { return group_count(w.columns, w.group); }
static inline int32_t tiles_of(const Matrix& w) { return (w.rows + LANES - 1) / LANES; }
static inline size_t tile_bytes(const Matrix& w) {
  const size_t exact = size_t(w.columns) * LANES, whole = size_t(padded(w.columns)) * LANES;
  return w.kind == Kind::float32 ? exact * 4 : w.kind == Kind::float16 ? exact * 2 : w.kind == Kind::int8 ? whole : whole / 2;
}

// Rows of int8 activations, as `quantize` makes them: row m is codes + m * padded(K), scales + m * groups, and so on.
struct Codes {
  int8_t* codes;   // [rows][K']: whole numbers from -127 to 127, zeros behind K
  float* scales;   // [rows][groups]: what a step of a group is worth; NaN where the group has a number that is not finite
  int32_t* sums;   // [rows][groups]: -zero_code * (sum of the group's codes): takes the offset of unsigned weights away
};

// Where a product goes: y[m * stride + n] for row m of the activations and row n of the matrix.
struct Output {
  float* y;
  int64_t stride;
  const float* bias;  // [N] or null: added to the product
  bool add;           // add to what y holds (a residual, a delta) in place of overwriting it
};

// K and V of a sequence at a depth: blocks of 16 tokens. Token t is in blocks[t / 16], at bytes `keys` and `values`
// from there for the head that is meant: K [d][16] (column t % 16), V [16][d] (row t % 16). In int8, with d filled up to
// a multiple of 16: K [d/4][16][4], V [4][d][4] (4 tokens side by side), each with the scales of its tokens, float32 [16], behind.
// In int4, with d filled up to a multiple of 32, two nibbles in a byte, low ones first: K [d/8][16][8 dims], V [d/32][16][16][2]
// (dims i and i + 16 of 32 in a byte), each with scales behind, float16 [d/16][16]; a nibble is a code plus 8.
struct Cached {
  const void* const* blocks;
  size_t keys, values;
};

// Attention of some rows (tokens) of one sequence, for the heads that share one KV head.
struct Attention {
  const float* q;      // q[m * q_stride + h * head_dim]: heads one after the other
  float* y;            // the same with y_stride
  int64_t q_stride, y_stride;
  int32_t rows, heads, head_dim;
  const int32_t* first;  // [rows]: row m sees tokens first[m] to last[m] - 1, at least one
  const int32_t* last;
  Cached cached;
  float scale;         // of the scores
  float cap;           // then cap * tanh(score / cap); 0: none
  float* scratch;      // attend_scratch(tokens from the first to the last that rows see, head_dim) floats
};

constexpr int32_t ATTEND_QUERIES = 4;  // heads that are worked on at once, at most
static inline size_t attend_scratch(int32_t seen, int32_t head_dim) {
  const int32_t scores = padded(seen) + LANES, steps = 2 * padded(scores / LANES), codes = padded(head_dim) / 4;
  return size_t(ATTEND_QUERIES) * size_t(scores + steps + codes);
}

struct Best {
  float value;
  int32_t index;
};

// In the order of the table `act`.
enum class Function : uint8_t { silu, gelu, gelu_tanh, relu2, sigmoid, tanh, softplus, exp, relu };
constexpr int FUNCTION_COUNT = 9;
// In the order of `attend`, `store_key` and `store_value`.
enum class CacheKind : uint8_t { float32, float16, int8, int4 };
constexpr int CACHE_KINDS = 4;
// Bytes of K, or of V, of one head in a block.
static inline size_t cache_part(CacheKind kind, int32_t head_dim) {
  if (kind == CacheKind::int4) return size_t(round_up(head_dim, 2 * LANES)) * 10;  // a float16 for each 16 nibbles
  if (kind == CacheKind::int8) return size_t(padded(head_dim)) * LANES + LANES * sizeof(float);
  return size_t(head_dim) * LANES * (kind == CacheKind::float16 ? 2 : 4);
}

struct Kernels {
  const char* name;  // portable; avx2, avxvnni, avx512, amx; neon, dotprod, i8mm

  // --- products -------------------------------------------------------------------------------------------------
  // x [n] → int8 codes, by itself for each group: scale = largest / 127, code = x * (127 / largest) to the nearest, half
  // to even. Codes are zero and the scale is 0 where the largest is 0 or below 3.8e-37. `zero`: zero_code of the matrix.
  void (*quantize)(const float* x, int32_t n, int32_t group, int32_t zero, int8_t* codes, float* scales, int32_t* sums);
  // Rows of codes times 16-row tiles `first` to `last` - 1 of an int8 or int4 matrix. A group adds
  // float(sum of code * code) * (scale of the weights * scale of the activations), groups in order.
  void (*product_codes)(const Matrix& w, const Codes& x, int32_t rows, int32_t first, int32_t last, const Output& out);
  // Rows x + m * stride of floats times the same tiles of a matrix of any kind. Column k is added to sum k % 4, in
  // order; the sums s become (s0 + s1) + (s2 + s3).
  void (*product_floats)(const Matrix& w, const float* x, int64_t stride, int32_t rows, int32_t first, int32_t last,
                         const Output& out);
  // Row n of a matrix of any kind as floats, times factor → y [K]: a row of an embedding.
  void (*matrix_row)(const Matrix& w, int32_t n, float factor, float* y);

  // --- norms ----------------------------------------------------------------------------------------------------
  // x [n] → y [n] = x * (1 / sqrt(mean(x²) + eps)) * w; w may be null. In-place.
  void (*rms_norm)(const float* x, int32_t n, float eps, const float* w, float* y);
  // d = x - mean(x); y = d * (1 / sqrt(mean(d²) + eps)) * w + b; w and b may be null. In-place.
  void (*layer_norm)(const float* x, int32_t n, float eps, const float* w, const float* b, float* y);

  // --- elementwise; all in-place ----------------------------------------------------------------------------------
  void (*act[FUNCTION_COUNT])(const float* x, int32_t n, float* y);  // by Function
  void (*add)(const float* a, const float* b, int32_t n, float* y);
  void (*mul)(const float* a, const float* b, int32_t n, float* y);
  void (*scale)(const float* x, int32_t n, float factor, const float* w, float offset, float* y);  // factor·x·w + offset; w may be null
  void (*add_scaled)(const float* x, int32_t n, float factor, float* y);                           // y + factor·x
  void (*blend)(const float* a, const float* b, int32_t n, float g, float* y);                     // g·a + (1 - g)·b
  void (*softcap)(const float* x, int32_t n, float cap, float* y);                                 // cap·tanh(x / cap)
  // The first `dims` of x [n], turned by cos and sin [dims / 2]; the rest is copied. Halves: i against i + dims / 2;
  // pairs: 2i against 2i + 1.
  void (*rotate_halves)(const float* x, int32_t n, int32_t dims, const float* cos, const float* sin, float* y);
  void (*rotate_pairs)(const float* x, int32_t n, int32_t dims, const float* cos, const float* sin, float* y);

  // --- choices ----------------------------------------------------------------------------------------------------
  void (*softmax)(const float* x, int32_t n, float* y);  // in-place
  Best (*argmax)(const float* x, int32_t n);             // the first of the largest of n ≥ 1; a NaN is larger than any number

  // --- attention, by CacheKind --------------------------------------------------------------------------------------
  // Floats: score = (q · k, dims in order) · scale. int8: q becomes codes as in `quantize`, and a score is
  // float(sum of code · code) · (scale of the key · (scale of q · scale)). Then cap, e^(score - largest) = p, and their sum by
  // token mod 16, folded. y = (sum of p · v, tokens in order) · (1 / sum of p). int8: p · (scale of the value) become codes
  // for each 16 tokens of a block, and blocks, in order, add float(sum of code · code) · scale.
  // int4: code = x / scale to the nearest, from -7 to 7, scale = largest of 16 numbers / 7 as a float16 (NaN where one is
  // not finite, or it is too large). Score = (sum over groups of 16 dims, in order, of (sum of q · code, dims in order) ·
  // scale) · scale of scores; y = (sum of (p · scale) · code, tokens in order) · (1 / sum of p).
  void (*attend[CACHE_KINDS])(const Attention& a);
  void (*store_key[CACHE_KINDS])(const float* k, int32_t head_dim, int32_t token, void* keys);        // the token's, of 16
  void (*store_value[CACHE_KINDS])(const float* v, int32_t head_dim, int32_t token, void* values);

  // --- float16 (round to nearest even; beyond 65504: infinity) -------------------------------------------------------
  void (*to_half)(const float* x, int64_t n, uint16_t* y);
  void (*to_float)(const uint16_t* x, int64_t n, float* y);
};

using ProductCodes = decltype(Kernels::product_codes);

// Which of two parts of a row has the largest number: for argmax in pieces.
static inline Best better(Best a, Best b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan != b_nan) return a_nan ? a : b;
  if (a_nan || a.value == b.value) return a.index <= b.index ? a : b;
  return a.value > b.value ? a : b;
}

// The names of the tables that were compiled, the best last, and null behind it.
const char* kernels_at(int number);
// The table `name`, or null: none of that name, or not for this processor.
const Kernels* kernels_named(const char* name);
// The best table for this processor, or the one that the environment variable EDGELOOP_KERNELS names; null if that is
// one that kernels_named does not give.
const Kernels* choose_kernels();

}  // namespace edgeloop
