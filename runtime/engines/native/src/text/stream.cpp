#include <algorithm>

#include "writer.h"

namespace edgeloop::text {

namespace {

constexpr size_t KEEP = 6, WINDOW = 24, RUN = 128;  // tokens that stay; that move the window; bytes that are held back
constexpr Bytes INCOMPLETE = "\xef\xbf\xbd";

bool ends_with(Bytes text, Bytes end) { return text.size() >= end.size() && text.substr(text.size() - end.size()) == end; }

// How many bytes are whole characters, where the rest may become one; −1 for broken bytes.
ptrdiff_t whole_bytes(Bytes data) {
  size_t at = 0, broken;
  bool open;
  while (at < data.size()) {
    const size_t n = whole(data, at, broken, open);
    if (!n) return open ? ptrdiff_t(at) : -1;
    at += n;
  }
  return ptrdiff_t(at);
}

void incomplete(size_t count, std::string& to) {
  while (count--) to.append(INCOMPLETE);
}

}  // namespace

std::string Stream::decoded(const Ids& ids, bool skip_special) const {
  std::string found;
  text_.decode(ids.data(), ids.size(), skip_special, found);
  return found;
}

std::string Stream::piece(int64_t token) {
  if (!text_.known(token)) return {};
  if (const int value = byte(token); value >= 0) return std::string(1, char(value));
  if (raw_) return std::string(text_.written(token));
  if (!asked_) {
    std::vector<uint32_t> ids;
    text_.encode("abcdef", false, ids);
    before_.assign(ids.begin(), ids.end());
    before_text_ = decoded(before_, false);
    asked_ = true;
  }
  Ids both = before_;
  both.push_back(token);
  std::string after = decoded(both, false);
  if (after.compare(0, before_text_.size(), before_text_) == 0) after.erase(0, before_text_.size());
  return after;
}

void Stream::begin(const int64_t* prompt, size_t count) {
  Ids ids;
  while (count--) {
    const int64_t token = prompt[count];
    if (silent(token)) continue;
    if (ids.empty() && byte(token) >= 0) {
      run_.push_back(token);
      continue;
    }
    ids.insert(ids.begin(), token);
    if (ids.size() >= KEEP && !decoded(ids).empty()) break;
  }
  std::reverse(run_.begin(), run_.end());
  for (int64_t token : run_) data_.push_back(char(byte(token)));
  const ptrdiff_t whole = whole_bytes(data_);
  if (whole < 0) {
    broken_ = true;
    ids.insert(ids.end(), run_.end() - ptrdiff_t(std::min(run_.size(), KEEP)), run_.end());
    run_.clear();
  } else if (run_.size() > RUN) {
    long_ = true;
    ptrdiff_t start = whole - ptrdiff_t(KEEP);
    while ((uint8_t(data_[size_t(start)]) & 0xc0) == 0x80) start--;  // not at the beginning of a character
    ids.insert(ids.end(), run_.begin() + start, run_.begin() + whole);
    run_.erase(run_.begin(), run_.begin() + whole);
  }
  data_.erase(0, data_.size() - run_.size());
  std::string ignored;
  if (!ids.empty()) grow(ids, ignored);
  known_ = shown_.substr(sent_);
  if (run_.empty()) return;
  if (long_) {
    known_.clear();
    incomplete(run_.size(), known_);
  } else {
    ids.insert(ids.end(), run_.begin(), run_.end());
    const std::string after = decoded(ids);
    known_ = after.size() > sent_ ? after.substr(sent_) : "";
  }
}

void Stream::push(int64_t token, std::string& out) {
  if (silent(token)) return;
  const int value = byte(token);
  if (value < 0) {
    release({token}, out);
    long_ = broken_ = false;
    return;
  }
  if (broken_) return fresh(INCOMPLETE, out);
  run_.push_back(token);
  data_.push_back(char(value));
  const ptrdiff_t whole = whole_bytes(data_);
  if (whole < 0) {
    broken_ = true;
    return release({}, out);
  }
  if (!long_ && run_.size() <= RUN) return;
  long_ = true;
  const Ids part(run_.begin(), run_.begin() + whole);
  run_.erase(run_.begin(), run_.begin() + whole);
  data_.erase(0, size_t(whole));
  grow(part, out);
}

void Stream::flush(std::string& out) {
  release({}, out);
  send(shown_.size(), out);
}

void Stream::release(const Ids& then, std::string& out) {
  Ids held;
  held.swap(run_);
  data_.clear();
  if (!long_) {
    held.insert(held.end(), then.begin(), then.end());
    return grow(held, out);
  }
  std::string rest;
  incomplete(held.size(), rest);
  fresh(rest, out);
  grow(then, out);
}

void Stream::grow(const Ids& ids, std::string& out) {
  if (ids.empty()) return;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  shown_ = decoded(ids_);
  // Only the last character can be half of one.
  send(shown_.size() - (ends_with(shown_, INCOMPLETE) ? INCOMPLETE.size() : 0), out);
  if (ids_.size() > WINDOW) move();
}

void Stream::send(size_t end, std::string& out) {
  const Bytes text = sent_ < end ? Bytes(shown_).substr(sent_, end - sent_) : Bytes();
  sent_ = std::max(sent_, end);
  fresh(text, out);
}

// Appends `text` without what the prompt's own text has already.
void Stream::fresh(Bytes text, std::string& out) {
  if (text.empty()) return;
  size_t same = 0;
  if (!known_.empty()) {
    while (same < std::min(text.size(), known_.size()) && text[same] == known_[same]) same++;
    while (same < text.size() && same && (uint8_t(text[same]) & 0xc0) == 0x80) same--;  // whole characters
    known_ = same == text.size() ? known_.substr(same) : "";
  }
  out.append(text.substr(same));
}

// Drops old tokens from the window, at a place where the text of the others does not change.
void Stream::move() {
  const size_t unsent = shown_.size() - sent_;
  Ids ids;
  std::string text;
  for (size_t start = ids_.size() - KEEP; start > 0; start--) {
    ids.assign(ids_.begin() + ptrdiff_t(start), ids_.end());
    text = decoded(ids);
    if (text.size() > unsent && ends_with(shown_, text)) break;
    ids.clear();
  }
  if (ids.empty()) {  // broken bytes, or tokens that write nothing; the first one stays as what comes before a text
    ids.assign(1, ids_[0]);
    ids.insert(ids.end(), ids_.end() - ptrdiff_t(KEEP), ids_.end());
    text = decoded(ids);
  }
  ids_.swap(ids);
  shown_.swap(text);
  sent_ = shown_.size() > unsent ? shown_.size() - unsent : 0;
}

}  // namespace edgeloop::text
