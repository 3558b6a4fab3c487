// The section of a model.lanes file that turns text into tokens and back: what of a tokenizer.json is used, as tables that
// are used where they lie.
//
//   Header      64 bytes at the beginning
//   Record …    one for each table, ascending by tag, each tag once; then the tables, each 64-byte aligned, in this order
//
// All numbers are little-endian, all offsets are bytes from the beginning of the section, what lies between tables is 0.
// The checksum is of header and records. Tables are not gone through when a section is opened, as vocabularies are large:
// what a number of them points at is checked when it is used. The rules (RULES, STEPS, CODE) are checked when it is opened.
// A reader passes over tables whose tags it does not know.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgeloop::text::file {

constexpr char MAGIC[8] = {'E', 'D', 'G', 'E', 'T', 'E', 'X', 'T'};
constexpr uint32_t VERSION = 1;
constexpr uint32_t NONE = 0xffffffff;
constexpr uint64_t ALIGNMENT = 64;
constexpr uint32_t MAX_TABLES = 256;
constexpr uint32_t MAX_TOKENS = (1u << 24) - 1;  // ids are below it
constexpr uint32_t MAX_PROBES = 1024;            // of a table by hash
constexpr uint32_t MAX_PIECE = 1u << 14;         // bytes of a token
constexpr uint32_t MAX_STEPS = 256;
constexpr uint32_t MAX_CODE = 1u << 20;
constexpr uint32_t CODE_POINTS = 0x110000;
constexpr uint32_t BLOCK = 256;  // code points that lie together in CLASSES

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t records;
  uint64_t bytes;     // of the whole section
  uint32_t checksum;  // CRC-32 (that of zlib) of header and records, with 0 in this field
  uint32_t unused[9];
};

struct Record {
  uint32_t tag;  // Tag
  uint32_t unused;
  uint64_t offset;
  uint64_t bytes;
};

enum Tag : uint32_t {
  RULES = 1,         // Rules
  STEPS = 2,         // Step: normalizers, then what splits, then decoders, each in order
  STRINGS = 3,       // bytes: what String points at
  PIECE_ENDS = 4,    // uint32 [tokens]: where each token of the model ends in PIECES; it begins where the one before ends
  PIECES = 5,        // bytes
  SLOTS = 6,         // uint32: a table by hash of PIECES; an id, and 8 bits of the hash above it; or NONE
  MERGES = 7,        // Merge: a table by hash of pairs
  BYTE_TOKENS = 8,   // uint32 [256]: the token of each byte, or NONE
  SCORES = 9,        // double [tokens], of a Unigram model
  BLOCKS = 10,       // uint16 [CODE_POINTS / BLOCK]: of CLASSES
  CLASSES = 11,      // uint8 [BLOCK] …: of MASKS, of each code point
  MASKS = 12,        // uint64: bit s: code points of this class are in set s
  CODE = 13,         // uint32: patterns (Code)
  ADDED = 14,        // Added, ascending by id
  ADDED_SLOTS = 15,  // uint32: a table by hash of the texts in ADDED; a number of ADDED, and 8 bits of the hash; or NONE
  BEFORE = 16,       // uint32: tokens before a text
  AFTER = 17,        // uint32: tokens behind it
  MAPS = 18,         // Mapped: of each map ascending by code point
  REORDER = 19,      // Mapped, whose `bytes` are combining classes, ascending by code point
  COMPOSE = 20,      // Composed, ascending by first, second
  CHARSMAP = 21,     // SentencePiece's precompiled_charsmap: the size of a double array, that, and strings ended by zeros
  // of an app's host (context/, runtime/engines/native/records.py)
  TURNS = 32,        // a chat template as data
  ABOUT = 33,        // who the model is, and what ends a text
  EXITS = 34,        // exit rules, and the numbers that they read
};

// Bytes of STRINGS.
struct String {
  uint32_t offset;
  uint32_t bytes;
};

// A table by hash: a key that has the place `home` lies there, or behind it within `probes` places, with no empty one
// between. Pieces and texts have home = hash · homes / 2³², pairs of tokens too.
struct Table {
  uint32_t homes;
  uint32_t probes;
};

enum ModelKind : uint32_t { BPE, UNIGRAM, WORDPIECE, WORDLEVEL, MODEL_KINDS };
enum Flag : uint32_t {
  RAW_BYTES = 1,       // PIECES are the bytes that tokens stand for, not characters that stand for bytes
  BYTE_FALLBACK = 2,
  FUSE_UNKNOWN = 4,
  IGNORE_MERGES = 8,
  SPLIT_SPECIAL = 16,  // special tokens in a text are text
  TYPED = 31,          // all of them
};

struct Rules {
  uint32_t model;   // ModelKind
  uint32_t flags;
  uint32_t tokens;  // ids of the model are below it
  uint32_t unknown; // token, or NONE
  Table slots, merges, added;
  String prefix;    // of what does not begin a word
  String suffix;    // of what ends one
  uint32_t longest;        // bytes of a token of the model
  uint32_t longest_added;  // bytes of a text in ADDED
  uint32_t most_characters;  // of a word of WORDPIECE
  uint32_t space;   // set: white space
  uint32_t word;    // set: characters of words
  uint32_t unused[7];
  double unknown_score;
};

// Left and right token, how early it is done, and the token that it makes: 24 bits each, in this order.
struct Merge {
  uint32_t words[3];
};

enum AddedFlag : uint32_t { SPECIAL = 1, NORMALIZED = 2, SINGLE_WORD = 4, LEFT = 8, RIGHT = 16 };
struct Added {
  uint32_t id;
  uint32_t flags;   // AddedFlag
  String text;      // as it stands in a text, where NORMALIZED after the normalizers
  String written;   // what a decoder gets
};

enum Stage : uint32_t { NORMALIZE, SPLIT, DECODE, STAGES };
enum Kind : uint32_t {
  // normalizers
  MAP = 1,        // set: what is mapped; first, count: of MAPS
  COMPOSED = 2,   // set: what is not as it shall be, or may not remain so; first, count: MAPS of the decomposition
                  //   flags 1: composed again
  REPLACE = 3,    // pattern or a: what, b: by what; flags 1: with b before and behind. Of a decoder too
  PREPEND = 4,    // a
  STRIP = 5,      // flags: 1 left, 2 right
  CLUSTERS = 6,   // by CHARSMAP. Sets: set: what joins the character before it; first: what nothing joins; count: what
                  //   joins the character behind it; flags 1: more: the first of CLUSTER_SETS
  // what splits
  PATTERN = 16,   // pattern; flags: Behavior, INVERTED
  METASPACE = 17, // a: the character; flags: 1 always, 2 first only; 4: split. Of a decoder: 1: the first one is dropped
  SPACED = 18,    // a space is put before, if there is none
  // decoders
  BYTES = 32,     // RAW_BYTES become characters
  FALLBACK = 33,  // <0x0A> become characters
  FUSE = 34,
  STRIP_TOKEN = 35,  // a: the character; first, count: how many at most at both ends
  WORDPIECES = 36,   // a: the prefix of what does not begin a word; a space before what does
  SUFFIX = 37,       // a: what is a space, and nothing at the end
  JOINED = 38,       // with spaces
};
// Sets in a row: consonants, what links them, what may stand between them (and links too); pictures, and what may stand
// between one and a joiner behind it.
enum ClusterSet : uint32_t { CONSONANT, LINKER, LINKED, PICTURE, EXTENDING, CLUSTER_SETS };
enum Behavior : uint32_t { REMOVED, ISOLATED, WITH_PREVIOUS, WITH_NEXT, CONTIGUOUS, BEHAVIORS, INVERTED = 8 };

struct Step {
  uint32_t stage;  // Stage
  uint32_t kind;   // Kind
  uint32_t flags;
  uint32_t pattern;  // where its code begins in CODE, or NONE
  uint32_t set;
  uint32_t first, count;
  uint32_t more;
  String a, b;
};

// What a code point becomes.
struct Mapped {
  uint32_t code_point;
  uint32_t offset;  // of STRINGS
  uint32_t bytes;
};

struct Composed {
  uint32_t first, second, made;
};

// Words of CODE. Addresses are of words of it; each pattern ends with MATCH.
enum Code : uint32_t {
  MATCH,
  SET,      // set: a character of it
  SPAN,     // set, least, most: so many characters of it, as many as can be
  EITHER,   // address, address: this, and if that leads nowhere that
  GO,       // address
  AHEAD,    // negated, address: what follows up to MATCH is or is not here; goes on at the address
  BEHIND,   // negated, set: the character before is of it
  ALL,      // as SPAN, and never less than can be
  CODES,
};

static_assert(sizeof(Header) == 64 && sizeof(Record) == 24 && sizeof(Rules) == 112 && sizeof(Merge) == 12, "");
static_assert(sizeof(Added) == 24 && sizeof(Step) == 48 && sizeof(Mapped) == 12 && sizeof(Composed) == 12, "");

// FNV-1a of 32 bits, begun with HASH; then mixed.
constexpr uint32_t HASH = 0x811c9dc5;
inline uint32_t hash_byte(uint32_t hash, uint8_t byte) { return (hash ^ byte) * 0x01000193; }
inline uint32_t mixed(uint32_t hash) {
  hash ^= hash >> 16;
  hash *= 0x85ebca6b;
  return hash ^ hash >> 13;
}
inline uint32_t hash_pair(uint64_t left, uint64_t right) {
  return uint32_t((left | right << 24) * 0x9e3779b97f4a7c15 >> 32);
}

}  // namespace edgeloop::text::file
