// From tokens to a text: what each is written as, and what decoders make of them one after the other.
#include <algorithm>

#include "text.h"

namespace edgeloop::text {

using namespace file;

const Added* Text::added(int64_t id) const {
  const Added* found = std::lower_bound(added_.begin(), added_.end(), id, [](const Added& a, int64_t b) { return a.id < b; });
  return found != added_.end() && found->id == id ? found : nullptr;
}

bool Text::known(int64_t id) const { return added(id) || (id >= 0 && id < rules_->tokens && !piece(uint32_t(id)).empty()); }

bool Text::special(int64_t id) const {
  const Added* a = added(id);
  return a && a->flags & SPECIAL;
}

Bytes Text::written(int64_t id) const {
  if (const Added* a = added(id)) return string(a->written);
  return id >= 0 && id < rules_->tokens ? piece(uint32_t(id)) : Bytes();
}

bool Text::decodes(Kind kind) const {
  for (const Step& step : steps_)
    if (step.stage == DECODE && step.kind == kind) return true;
  return false;
}

int byte_of(Bytes token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

namespace {

using Tokens = std::vector<std::string>;

void replace_all(std::string& text, Bytes what, Bytes by) {
  std::string made;
  size_t done = 0;
  for (size_t at; (at = text.find(what, done)) != std::string::npos; done = at + what.size())
    made.append(text, done, at - done).append(by);
  if (!done) return;
  text = made.append(text, done, std::string::npos);
}

void fuse(Tokens& tokens, Bytes between) {
  std::string all;
  for (size_t i = 0; i < tokens.size(); i++) all.append(i ? between : Bytes()).append(tokens[i]);
  tokens.assign(1, all);
}

// Runs of bytes become text if all of a run is, else U+FFFD for each.
void bytes_as_text(Tokens& tokens) {
  Tokens made;
  std::string run;
  const auto release = [&] {
    if (run.empty()) return;
    size_t at = 0, broken;
    bool open;
    while (at < run.size()) {
      const size_t n = whole(run, at, broken, open);
      if (!n) break;
      at += n;
    }
    if (at == run.size())
      made.push_back(run);
    else
      made.insert(made.end(), run.size(), "\xef\xbf\xbd");
    run.clear();
  };
  for (std::string& token : tokens) {
    const int byte = byte_of(token);
    if (byte >= 0) {
      run.push_back(char(byte));
      continue;
    }
    release();
    made.push_back(std::move(token));
  }
  release();
  tokens.swap(made);
}

void strip(std::string& token, Bytes what, size_t most_before, size_t most_behind) {
  size_t start = 0, end = token.size();
  for (; most_before-- && token.compare(start, what.size(), what) == 0;) start += what.size();
  for (; most_behind-- && end >= start + what.size() && token.compare(end - what.size(), what.size(), what) == 0;)
    end -= what.size();
  token = token.substr(start, end - start);
}

}  // namespace

void Text::replace(const Step& step, std::string& text, bool& first) const {
  if (step.pattern == NONE) {
    if (text.compare(0, step.a.bytes, string(step.a)) == 0 && (!step.b.bytes || step.a.bytes > width(uint8_t(text[0]))))
      first = false;
    return replace_all(text, string(step.a), string(step.b));
  }
  std::string made;
  size_t done = 0;
  for (Matches matches(*this, step.pattern, text); matches.next(); done = matches.end) {
    // As the library has it: what becomes of some characters begins where the last of them did.
    if (!matches.start && (!step.b.bytes || matches.end > width(uint8_t(text[0])))) first = false;
    made.append(text, done, matches.start - done).append(string(step.b));
    if (step.flags & 1) made.append(text, matches.start, matches.end - matches.start).append(string(step.b));
  }
  if (done) text = made.append(text, done, std::string::npos);
}

void Text::decode(const int64_t* ids, size_t count, bool skip_special, std::string& text) const {
  const Step* step = std::find_if(steps_.begin(), steps_.end(), [](const Step& s) { return s.stage == DECODE; });
  const bool joined = step != steps_.end() && step->kind == BYTES;  // then no token stands alone
  Tokens tokens(joined);
  for (size_t i = 0; i < count; i++) {
    const int64_t id = ids[i];
    const Added* a = added(id);
    if (!a && (id < 0 || id >= rules_->tokens)) continue;
    const Bytes found = a ? string(a->written) : piece(uint32_t(id));
    if ((!a && found.empty()) || (a && skip_special && a->flags & SPECIAL)) continue;
    if (joined)
      tokens[0].append(found);
    else
      tokens.emplace_back(found);
  }
  bool first = true;
  for (const Step& step : steps_) {
    if (step.stage != DECODE) continue;
    const Bytes mark = string(step.a);
    const auto each = [&](auto change) {
      for (size_t i = 0; i < tokens.size(); i++) change(tokens[i], i);
    };
    switch (step.kind) {
      case BYTES: {
        std::string all;
        fuse(tokens, {});
        append_repaired(all, tokens[0]);
        tokens[0].swap(all);
        break;
      }
      case FALLBACK: bytes_as_text(tokens); break;
      case FUSE: fuse(tokens, {}); break;
      case JOINED: fuse(tokens, " "); break;
      case REPLACE: each([&](std::string& token, size_t) { replace(step, token, first); }); break;
      case METASPACE:
        each([&](std::string& token, size_t i) { replace_all(token, mark, i || !(step.flags & 1) ? " " : ""); });
        break;
      case STRIP_TOKEN: each([&](std::string& token, size_t) { strip(token, mark, step.first, step.count); }); break;
      case WORDPIECES:
        each([&](std::string& token, size_t i) {
          if (!i) return;
          if (token.compare(0, mark.size(), mark) == 0)
            token.erase(0, mark.size());
          else
            token.insert(0, 1, ' ');
        });
        break;
      default:
        each([&](std::string& token, size_t i) { replace_all(token, mark, i + 1 < tokens.size() ? " " : ""); });
    }
  }
  for (const std::string& token : tokens) text.append(token);
}

}  // namespace edgeloop::text
