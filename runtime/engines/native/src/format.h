// The file that the lane engine maps and runs, `model.lanes`: these structs, as they lie in it, are its description.
//
//   Header                       512 bytes at the beginning
//   tables                       arrays of the records below, each 64-byte aligned, everywhere before Header::data_start
//   tensors                      from data_start on, each 64-byte aligned; every one of them once
//   text                         what turns text into tokens and back, 64-byte aligned; or nothing
//
// All numbers are little-endian, all offsets are bytes from the beginning of the file, and 0 is the offset of what is
// not there. Fields named `unused` or `more` are 0, and so is what lies between tables or tensors. A reader checks every
// number once, when it opens a file; a writer needs this header and runtime/model/ only.
//
// Letters as in runtime/model/ops.py: N rows of a call, D width, K columns of a matrix, G columns of a group, R depths.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgeloop::file {

constexpr char MAGIC[8] = {'E', 'D', 'G', 'E', 'L', 'A', 'N', 'E'};
constexpr uint32_t VERSION = 1;  // of everything here: a file of another version is not read
constexpr uint32_t NONE = 0xffffffff;  // a number that is not given
constexpr uint64_t ALIGNMENT = 64;
constexpr uint32_t TILE = 16;  // rows of a matrix that lie together; also the floats that kernels take at a time

// What numbers may be, as in runtime/model/limits.py: sizes can be multiplied in 64 bits.
constexpr uint32_t MAX_SIZE = 1u << 24;
constexpr uint32_t MAX_GROUP = 1u << 16;  // the sum of so many products of codes fits 32 bits
constexpr uint32_t MAX_DEPTHS = 1u << 14;
constexpr uint32_t MAX_RECORDS = 1u << 20;  // of any table but NAMES and FREQUENCIES, which may have 16 times as many

// ---- the tables ---------------------------------------------------------------------------------------------------

struct Table {
  uint64_t offset;
  uint64_t count;  // of records
};

enum TableNumber : uint32_t {
  STAGES,       // Stage
  OPS,          // Op
  OPERANDS,     // uint32: numbers of values, in the order in which ops and stages name them
  VALUES,       // uint32: the size of each value of each stage; 0: whole numbers [N], not vectors
  SCHEDULE,     // Depth: one for each depth of the loop
  CARRIES,      // uint32: the widths of the carries; side by side they are a state [N, sum]
  CACHES,       // Cache: those of the prologue, then the block's, then the epilogue's
  KEPT,         // uint32: the sizes of the rows that Shift keeps, in the same order
  MATRICES,     // Matrix
  PARTS,        // Part: of the matrices
  VECTORS,      // Vector
  ROTATIONS,    // Rotation
  FREQUENCIES,  // double: of the rotations, radians from one position to the next
  NAMES,        // bytes: UTF-8 names, each ended by a zero byte; for messages and for who compares files
  TABLES,
};

// Of CACHES and KEPT: which of them are whose.
struct Range {
  uint32_t first;
  uint32_t count;
};

enum StageWithCaches : uint32_t { PROLOGUE, BLOCK, EPILOGUE, STAGES_WITH_CACHES };

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;  // sizeof(Header)
  uint64_t file_bytes;    // a file of another size is truncated, or has something behind it
  uint64_t data_start;    // the first byte behind the tables: a multiple of 64
  uint32_t checksum;      // CRC-32 (that of zlib) of the bytes 0 … data_start − 1, with 0 in this field
  uint32_t vocab_size;
  uint32_t context_length;  // positions are below it
  uint32_t token_types;     // types are below it; 0: the prologue takes none
  uint32_t prologue;        // numbers of STAGES
  uint32_t epilogue;        // what follows the loop
  uint32_t head;            // makes the logits of what the epilogue gives; a head without ops gives what it reads
  uint32_t deeper;          // index in SCHEDULE that depths beyond it repeat, of an open-ended loop; or NONE
  uint32_t shares_kv;       // 1: the depths of the block read what depth 0 wrote, a sequence has one slot; else 0
  uint32_t unused[3];
  Range caches[STAGES_WITH_CACHES];
  Range kept[STAGES_WITH_CACHES];
  Table tables[TABLES];
  uint64_t text;        // behind the tensors: the section of text/format.h; or 0
  uint64_t text_bytes;  // of it; 0: the file has none
  uint8_t more[512 - 96 - 16 * STAGES_WITH_CACHES - 16 * TABLES];
};

// ---- stages -------------------------------------------------------------------------------------------------------

// Ops that make `outputs` of values that are given. A stage's values are numbered 0 … values − 1: its inputs first, in
// order, then what its ops write, in order. Each is written once, and before it is read.
struct Stage {
  uint32_t first_op, ops;          // of OPS
  uint32_t first_value, values;    // of VALUES
  uint32_t inputs;                 // the prologue's are of ids; of the others floats
  uint32_t first_host;             // of OPERANDS, the prologue's only: a Host for each input
  uint32_t first_output, outputs;  // of OPERANDS
};

enum Host : uint32_t { IDS, POSITIONS, TYPES };  // what the caller gives a prologue

// A depth: the stage that it runs, and the one that makes K and V of a token that skips it.
struct Depth {
  uint32_t block;  // of STAGES; takes the carries and gives them. Where depths share K and V, the deeper ones read only
  uint32_t fill;   // of STAGES, or NONE; takes the carries, gives k and v of each cache of the block in turn
};

// K and V of one layer. A row of a slot is k [kv_heads · head_dim] and v of as many.
struct Cache {
  uint32_t kv_heads, head_dim;
  uint32_t window;  // tokens that are ever seen, the newest included; 0: all
  uint32_t unused;
};

// ---- ops ----------------------------------------------------------------------------------------------------------

// Their formulas are in runtime/model/ops.py. Beside each kind: what it reads → what it writes; then what `function`,
// `flags`, `weights`, `numbers` and `factors` hold, in order. What is not mentioned is 0, of weights NONE.
enum OpKind : uint32_t {
  EMBED,           // ids → y                   weights: matrix of one part; factors: scale
  NORM,            // x → y                     function: Norm; weights: vector w, b, or NONE; numbers: groups; factors: eps
  LINEAR,          // x → y …                   weights: matrix; numbers: the first of its parts that is wanted
  ROTATE,          // x → y                     flags: PAIRS; numbers: heads, rotation
  ATTEND,          // q, k, v → y; or q → y     flags: FIRST_SLOT; numbers: heads, kv_heads, head_dim, cache or NONE,
                   //                           window (0: none), Mask; factors: scale, cap (0: none)
  ATTEND_TWICE,    // q, k, v, gate → y         numbers: heads, kv_heads, head_dim, cache, window; factors: scale
  ATTEND_LEARNED,  // q → y                     weights: vectors keys, values; numbers: heads, kv_heads, head_dim; factors: scale
  ACT,             // x → y                     function: Function
  ADD,             // a, b → y
  MUL,             // a, b → y                  b may have a divisor of a's size: a number for each part
  SCALE,           // x → y                     weights: vector or NONE; factors: factor, offset
  SOFTCAP,         // x → y                     factors: cap
  CONCAT,          // x … → y
  SLICE,           // x → y                     numbers: start, stop
  SHIFT,           // x → y                     numbers: which of the rows that the stage keeps
  EXPERTS,         // x, scores → y             function: Function; flags: GATED, RENORMALISED; weights: matrices up, down;
                   //                           numbers: top
  OP_KINDS,
};

enum Norm : uint32_t { RMS, LAYER };
enum Mask : uint32_t { CAUSAL, BOTH, PREFIX };
enum Function : uint32_t { SILU, GELU, GELU_TANH, RELU2, SIGMOID, TANH, SOFTPLUS, EXP, RELU, FUNCTIONS };
enum Flag : uint32_t { PAIRS = 1, FIRST_SLOT = 2, GATED = 4, RENORMALISED = 8 };

struct Op {
  uint32_t kind;
  uint32_t function;
  uint32_t flags;
  uint32_t at;             // the depth whose rows, copies and deltas of a weight apply; NONE: that of the row's lane
  uint32_t first_operand;  // of OPERANDS: what it reads, then what it writes, as numbers of the stage's values
  uint32_t reads, writes;
  uint32_t weights[3];  // of MATRICES or of VECTORS, as the kind says
  uint32_t numbers[6];
  float factors[2];
  uint32_t unused[2];
};

// ---- weights ------------------------------------------------------------------------------------------------------

enum Storage : uint32_t { F32, F16, I8, I4, STORAGES };

// A matrix [out, in], in tiles of 16 rows that lie one after the other; its rows are those of its parts in turn, each
// filled up to a multiple of 16 with rows of zeros; of `copies` matrices (one a depth, or an expert) all parts of the
// first, then those of the second, …
//
// `data`, tile after tile; K are the columns, K' those filled up to a multiple of 16:
//   F32   [K][16]                floats: column k of the 16 rows side by side
//   F16   [K][16]                halves
//   I8    [K'/4][16 rows][4]     bytes: columns 4i … 4i + 3 of each row
//   I4    [K'/8][16 rows][4]     bytes: columns 8i … 8i + 3 in the low halves, 8i + 4 … 8i + 7 in the high ones
// Codes are unsigned, with an offset of half their range, as in runtime/model/codec.py: 128 or 8 is zero, and what fills
// up rows and columns. `scales`, of I8 and I4: tile after tile [⌈K/G⌉][16] halves, 0 in rows that fill up; a value is
// (code − offset) · scale. G is a multiple of 16, or K: then a row is one group, whatever K is; at most MAX_GROUP.
struct Matrix {
  uint32_t name;               // of NAMES
  uint32_t storage;            // Storage
  uint32_t columns;            // K
  uint32_t group;              // G; 0 for floats
  uint32_t copies;             // at least 1
  uint32_t depths;             // of the deltas of its parts; 1 where none has any
  uint32_t first_part, parts;  // of PARTS
  uint64_t data;
  uint64_t scales;
  uint64_t bias;  // [copies][Σ rows of the parts, filled up] floats, or 0
  uint64_t unused;
};

// Rows of a matrix, and what is added to them at a depth: W + B A, and each row times a number where there is `scale`;
// a bias comes after both. A and B lie as matrices of their own, in tiles, of one storage: `depths` matrices A [rank, K],
// and as many B [rows, rank]. Of I8 a row is one group, and the scales of all of them lie directly behind all codes.
struct Part {
  uint32_t name;
  uint32_t rows;
  uint32_t rank;     // 0: no delta
  uint32_t storage;  // of A and B: F32, F16 or I8
  uint64_t a;
  uint64_t b;
  uint64_t scale;  // [depths][rows, filled up to a multiple of 16] floats, or 0
};

// Numbers [rows][size, filled up to a multiple of 16 with zeros] floats.
struct Vector {
  uint32_t name;
  uint32_t size;
  uint32_t rows;  // one for each depth, or each learned key; 0: one for all
  uint32_t unused;
  uint64_t data;
};

// Pair i of the first `dims` numbers of a head turns by position · frequency[i]; cos and sin are taken in double
// precision, times `amplitude`, and rounded to float.
struct Rotation {
  uint32_t dims;
  uint32_t first_frequency;  // of FREQUENCIES: dims / 2 of them
  double amplitude;
};

static_assert(sizeof(Header) == 512 && offsetof(Header, caches) == 80, "as a file has it");
static_assert(sizeof(Table) == 16 && sizeof(Stage) == 32 && sizeof(Depth) == 8 && sizeof(Cache) == 16, "");
static_assert(sizeof(Op) == 80 && sizeof(Matrix) == 64 && sizeof(Part) == 40, "");
static_assert(sizeof(Vector) == 24 && sizeof(Rotation) == 16, "");

// Up to a whole number of tiles.
inline uint64_t filled_up(uint64_t n) { return (n + TILE - 1) / TILE * TILE; }

// Bytes of a tile: of numbers or codes, and of scales.
inline uint64_t tile_size(uint32_t storage, uint32_t columns) {
  switch (storage) {
    case F32: return uint64_t(columns) * TILE * 4;
    case F16: return uint64_t(columns) * TILE * 2;
    case I8: return filled_up(columns) * TILE;
    default: return filled_up(columns) * TILE / 2;
  }
}

inline uint64_t scale_size(uint32_t columns, uint32_t group) {
  return uint64_t(group ? (columns + group - 1) / group : 0) * TILE * 2;
}

}  // namespace edgeloop::file
