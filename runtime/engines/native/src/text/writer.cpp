#include "writer.h"

#include <algorithm>
#include <cstring>

namespace edgeloop::text {

namespace {

constexpr uint32_t MAX_STOPS = 1000;
constexpr size_t MAX_STOP = 40000;  // bytes

}  // namespace

void Stops::add(Bytes stop) {
  Stop made{std::string(stop), std::vector<uint32_t>(stop.size()), 0};
  uint32_t state = 0;
  for (size_t at = 1; at < stop.size(); at++) {
    while (state && stop[at] != stop[state]) state = made.failures[state - 1];
    state += stop[at] == stop[state];
    made.failures[at] = state;
  }
  longest = std::max(longest, stop.size());
  stops_.push_back(std::move(made));
}

bool Stops::push(Bytes data) {
  bool found = false;
  size_t first = 0, most = 0;
  for (Stop& stop : stops_) {
    for (size_t at = 0; at < data.size(); at++) {
      while (stop.state && data[at] != stop.text[stop.state]) stop.state = stop.failures[stop.state - 1];
      stop.state += data[at] == stop.text[stop.state];
      if (stop.state < stop.text.size()) continue;
      found = true;
      first = std::max(first, stop.state + data.size() - at - 1);
      stop.state = stop.failures[stop.state - 1];
    }
    most = std::max(most, stop.state);
  }
  begins = found ? first : most;
  return found;
}

Writer::Writer(const Text& text, const int64_t* prompt, size_t prompt_count, const char* const* stops,
    uint32_t stops_count)
    : stream_(text) {
  if (stops_count > MAX_STOPS) fail(EL_USAGE, "%u stop strings, wanted at most %u", stops_count, MAX_STOPS);
  for (uint32_t i = 0; i < stops_count; i++) {
    const Bytes stop = stops[i] ? Bytes(stops[i]) : Bytes();
    if (stop.empty() || stop.size() > MAX_STOP)
      fail(EL_USAGE, "stop string %u has %zu bytes, wanted 1 to %zu", i, stop.size(), MAX_STOP);
    for (size_t at = 0, broken; at < stop.size();) {
      bool open;
      const size_t n = whole(stop, at, broken, open);
      if (!n) fail(EL_USAGE, "byte %zu of stop string %u is no UTF-8", at, i);
      at += n;
    }
    stops_.add(stop);
  }
  stream_.begin(prompt, prompt_count);
  if (!stops_.longest) return;
  std::string before;
  for (size_t at = prompt_count; at-- > 0 && before.size() + 1 < stops_.longest;)
    before.insert(0, stream_.piece(prompt[at]));
  stops_.push(before);
}

void Writer::push(int64_t token) {
  out.clear();
  if (stopped) fail(EL_USAGE, "a stop string has come, and nothing follows it");
  if (!stops_.longest) return stream_.push(token, out);
  held_.emplace_back(token, stream_.piece(token));
  const std::string& piece = held_.back().second;
  bytes_ += piece.size();
  stopped = stops_.push(piece);
  const size_t begins = stops_.begins;
  while (!held_.empty() && bytes_ - held_.front().second.size() >= begins) {
    bytes_ -= held_.front().second.size();
    stream_.push(held_.front().first, out);
    held_.pop_front();
  }
  if (stopped) last(begins);
}

void Writer::end() {
  out.clear();
  if (stopped) return;
  for (const auto& [token, piece] : held_) stream_.push(token, out);
  held_.clear();
  stream_.flush(out);
}

// The end of the text, given that a stop string begins `begins` bytes before the end of what is held back.
void Writer::last(size_t begins) {
  if (begins >= bytes_) return stream_.flush(out);  // with a token, or in the prompt
  const auto& [token, piece] = held_.front();
  const size_t kept = bytes_ - begins;  // bytes of the token that are text
  std::string cut, text;
  append_repaired(cut, Bytes(piece).substr(kept));
  stream_.push(token, text);
  stream_.flush(text);
  if (!stream_.silent(token)) {
    // As many characters as are cut: each is one or several bytes here and there.
    size_t characters = 0, end = text.size();
    for (char c : cut) characters += (uint8_t(c) & 0xc0) != 0x80;
    for (; characters && end; characters--) end = before(text, end);
    text.resize(end);
  }
  out.append(text);
}

}  // namespace edgeloop::text
