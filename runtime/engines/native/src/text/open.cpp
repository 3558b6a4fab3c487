// What may be wrong with a text section: where its tables lie, and its rules. What vocabularies point at is checked when
// it is used.
#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "../checksum.h"
#include "text.h"

namespace edgeloop::text {

using namespace file;

namespace {

[[noreturn]] void wrong(const char* what, uint64_t found) {
  fail(EL_FORMAT, "the text section: %s %llu; copy the file again or export it again", what, (unsigned long long)found);
}

constexpr uint32_t CODE_WORDS[CODES] = {1, 2, 4, 3, 2, 3, 3, 4};

}  // namespace

Text::Text(const Model& model) : bytes_(model.text().data), size_(model.text().count) {
  if (!size_)
    fail(EL_USAGE, "the file has no text section: its tokenizer is of another kind, or was left out; give token ids");
  check(true);
}

Text::Text(const uint8_t* bytes, size_t size, bool whole) : bytes_(bytes), size_(size) { check(whole); }

const Record* Text::record(uint32_t tag) const {
  const Record* records = reinterpret_cast<const Record*>(bytes_ + sizeof(Header));
  for (uint32_t i = 0; i < reinterpret_cast<const Header*>(bytes_)->records; i++)
    if (records[i].tag == tag) return records + i;
  return nullptr;
}

void Text::check(bool whole) {
  if (size_ < sizeof(Header) || std::memcmp(bytes_, MAGIC, sizeof MAGIC)) wrong("it is none, of bytes", size_);
  const Header& h = *reinterpret_cast<const Header*>(bytes_);
  if (h.version != VERSION) wrong("of a version that this library does not read,", h.version);
  if (h.bytes != size_) wrong("its size is given as", h.bytes);
  const uint64_t head = sizeof(Header) + uint64_t(h.records) * sizeof(Record);
  if (h.records > MAX_TABLES || head > size_) wrong("its tables are", h.records);
  if (whole) {
    const uint8_t zeros[sizeof h.checksum] = {};
    const size_t field = offsetof(Header, checksum);
    Checksum sum;
    sum.add(bytes_, field);
    sum.add(zeros, sizeof zeros);
    sum.add(bytes_ + field + sizeof zeros, head - field - sizeof zeros);
    if (sum.value() != h.checksum) wrong("its tables have another checksum, not", h.checksum);
  }
  const Record* records = reinterpret_cast<const Record*>(bytes_ + sizeof(Header));
  uint64_t end = head;
  for (uint32_t i = 0; i < h.records; i++) {
    const Record& r = records[i];
    if ((i && r.tag <= records[i - 1].tag) || r.offset % ALIGNMENT || r.offset < end || r.offset > size_
        || r.bytes > size_ - r.offset)
      wrong("misplaced is table", r.tag);
    end = r.offset + r.bytes;
  }

  const View<Rules> rules = table<Rules>(RULES);
  if (!rules.count) fail(EL_USAGE, "the file has no tokenizer: it is of another kind, or was left out; give token ids");
  if (rules.count != 1) wrong("its rules are", rules.count);
  rules_ = rules.data;
  strings_ = table<char>(STRINGS);
  piece_ends_ = table<uint32_t>(PIECE_ENDS);
  pieces_ = table<char>(PIECES);
  slots_ = table<uint32_t>(SLOTS);
  merges_ = table<Merge>(MERGES);
  byte_tokens_ = table<uint32_t>(BYTE_TOKENS);
  scores_ = table<double>(SCORES);
  blocks_ = table<uint16_t>(BLOCKS);
  classes_ = table<uint8_t>(CLASSES);
  masks_ = table<uint64_t>(MASKS);
  code_ = table<uint32_t>(CODE);
  added_ = table<Added>(ADDED);
  added_slots_ = table<uint32_t>(ADDED_SLOTS);
  before_ = table<uint32_t>(BEFORE);
  after_ = table<uint32_t>(AFTER);
  maps_ = table<Mapped>(MAPS);
  reorder_ = table<Mapped>(REORDER);
  compose_ = table<Composed>(COMPOSE);
  steps_ = table<Step>(STEPS);
  check_rules();
  for (uint32_t c = 0; c < 128; c++) ascii_[c] = sets_beyond(c);
}

void Text::check_rules() {
  const Rules& r = *rules_;
  if (r.model >= MODEL_KINDS) wrong("its model is of a kind that there is not,", r.model);
  if (r.tokens > MAX_TOKENS || piece_ends_.count != r.tokens) wrong("its tokens are", r.tokens);
  if (r.unknown != NONE && r.unknown >= r.tokens) wrong("its unknown token is", r.unknown);
  if (r.longest > MAX_PIECE || r.longest_added > MAX_PIECE) wrong("its longest token has bytes", r.longest);
  const auto hashed = [](const file::Table& t, size_t count) {
    if (t.probes > MAX_PROBES || t.homes > count || (t.homes && t.probes > count)) wrong("by hash are", t.homes);
  };
  hashed(r.slots, slots_.count);
  hashed(r.merges, merges_.count);
  hashed(r.added, added_slots_.count);
  if (byte_tokens_.count && byte_tokens_.count != 256) wrong("the tokens of bytes are", byte_tokens_.count);
  for (uint32_t id : byte_tokens_)
    if (id != NONE && id >= r.tokens) wrong("a byte's token is", id);
  if ((flag(RAW_BYTES) || flag(BYTE_FALLBACK)) && !byte_tokens_.count) wrong("the tokens of bytes are", 0);
  if (r.model == UNIGRAM && scores_.count != r.tokens) wrong("its scores are", scores_.count);
  string(r.prefix), string(r.suffix);
  if (r.prefix.bytes > MAX_PIECE || r.suffix.bytes > MAX_PIECE) wrong("a prefix has bytes", r.prefix.bytes);
  if (blocks_.count && blocks_.count != CODE_POINTS / BLOCK) wrong("its blocks of code points are", blocks_.count);
  for (uint16_t block : blocks_)
    if (classes_.count < (size_t(block) + 1) * BLOCK) wrong("behind all code points is block", block);
  if (r.space >= 64 || r.word >= 64) wrong("a set is", r.space);
  uint32_t last = 0;
  for (const Added& a : added_) {
    if (a.id >= MAX_TOKENS || (&a != added_.begin() && a.id <= last)) wrong("misplaced is token", a.id);
    last = a.id;
    const Bytes text = string(a.text);
    string(a.written);
    if (text.empty() || text.size() > r.longest_added) wrong("of other bytes is the text of token", a.id);
    added_begins_[uint8_t(text[0])] = true;
    (a.flags & NORMALIZED ? any_normalized_ : any_plain_) = true;
  }
  for (const View<uint32_t>& around : {before_, after_})
    for (uint32_t id : around)
      if (id >= MAX_TOKENS) wrong("around texts is token", id);
  if (steps_.count > MAX_STEPS) wrong("its steps are", steps_.count);
  uint32_t stage = 0;
  for (const Step& step : steps_) {
    if (step.stage >= STAGES || step.stage < stage) wrong("misplaced is a step of", step.stage);
    stage = step.stage;
    check_step(step);
  }
  check_code();
  const auto mapped = [&](const Mapped& m) {
    if (m.code_point >= CODE_POINTS) wrong("mapped is character", m.code_point);
  };
  for (const Mapped& m : reorder_) mapped(m);
}

void Text::check_step(const Step& s) const {
  string(s.a), string(s.b);
  if (s.pattern != NONE && s.pattern >= code_.count) wrong("a pattern begins at", s.pattern);
  if (s.set >= 64) wrong("a set is", s.set);
  const bool counts = s.kind == MAP || s.kind == COMPOSED;
  if (counts && (s.first > maps_.count || s.count > maps_.count - s.first)) wrong("mapped from", s.first);
  if ((s.kind == PATTERN && (s.pattern == NONE || (s.flags & ~INVERTED) >= BEHAVIORS))
      || ((s.kind == METASPACE || s.kind == STRIP_TOKEN || s.kind == SUFFIX) && !s.a.bytes)
      || (s.kind == REPLACE && s.pattern == NONE && !s.a.bytes))
    wrong("incomplete is a step of kind", s.kind);
  if (s.kind == CLUSTERS) {
    const View<uint8_t> map = table<uint8_t>(CHARSMAP);
    if (s.flags & 1 && s.more > 64 - CLUSTER_SETS) wrong("a set is", s.more);
    if (s.first >= 64 || s.count >= 64 || !map.count || map[map.count - 1]) wrong("a set is", s.first);
  }
  const auto one_of = [&](std::initializer_list<uint32_t> kinds) {
    for (uint32_t kind : kinds)
      if (s.kind == kind) return;
    wrong("there are no steps of kind", s.kind);
  };
  if (s.stage == NORMALIZE) one_of({MAP, COMPOSED, REPLACE, PREPEND, STRIP, CLUSTERS});
  if (s.stage == SPLIT) one_of({PATTERN, METASPACE, SPACED});
  if (s.stage == DECODE)
    one_of({REPLACE, METASPACE, BYTES, FALLBACK, FUSE, STRIP_TOKEN, WORDPIECES, SUFFIX, JOINED});
}

// Every instruction is whole and leads to the beginning of another, and the last one to none behind it. Instructions lie one
// after the other, so that the beginnings are found from the first on.
void Text::check_code() const {
  if (code_.count > MAX_CODE) wrong("its patterns have words", code_.count);
  std::vector<bool> begins(code_.count + 1);
  uint32_t last = MATCH;
  for (size_t pc = 0; pc < code_.count;) {
    begins[pc] = true;
    last = code_[pc];
    if (code_[pc] >= CODES || CODE_WORDS[code_[pc]] > code_.count - pc) wrong("no instruction is at", pc);
    pc += CODE_WORDS[code_[pc]];
  }
  if (last != MATCH) wrong("the last pattern ends with", last);
  const auto leads = [&](uint32_t to) {
    if (to >= code_.count || !begins[to]) wrong("a pattern goes on at", to);
  };
  for (size_t pc = 0; pc < code_.count; pc += CODE_WORDS[code_[pc]]) {
    const uint32_t* words = &code_[pc];
    switch (words[0]) {
      case EITHER: leads(words[1]), leads(words[2]); break;
      case GO: leads(words[1]); break;
      case AHEAD: leads(words[2]); break;
      case SET:
      case SPAN:
      case ALL:
        if (words[1] >= 64) wrong("a set is", words[1]);
        break;
      case BEHIND:
        if (words[2] >= 64) wrong("a set is", words[2]);
        break;
      default: break;
    }
  }
  for (const Step& s : steps_)
    if (s.pattern != NONE) leads(s.pattern);
}

Bytes Text::string(String found) const {
  if (found.offset > strings_.count || found.bytes > strings_.count - found.offset)
    wrong("a string begins at", found.offset);
  return {strings_.data + found.offset, found.bytes};
}

Bytes Text::piece(uint32_t id) const {
  const uint32_t start = id ? piece_ends_[id - 1] : 0, end = piece_ends_[id];
  if (start > end || end > pieces_.count) wrong("no bytes has token", id);
  return {pieces_.data + start, end - start};
}

uint64_t Text::sets_beyond(uint32_t character) const {
  if (!blocks_.count || character >= CODE_POINTS) return 0;
  const uint8_t found = classes_[size_t(blocks_[character / BLOCK]) * BLOCK + character % BLOCK];
  return found < masks_.count ? masks_[found] : 0;
}

uint32_t Text::find(Bytes bytes) const {
  uint32_t hash = HASH;
  for (char c : bytes) hash = hash_byte(hash, uint8_t(c));
  return find(bytes, hash);
}

uint32_t Text::find(Bytes bytes, uint32_t hash) const {
  const uint32_t key = mixed(hash);
  size_t at = uint64_t(key) * rules_->slots.homes >> 32;
  const size_t end = std::min(slots_.count, at + rules_->slots.probes);
  for (; at < end && slots_[at] != NONE; at++) {
    const uint32_t id = slots_[at] & MAX_TOKENS;
    if (slots_[at] >> 24 == (key & 0xff) && id < rules_->tokens && piece(id) == bytes) return id;
  }
  return NONE;
}

}  // namespace edgeloop::text
