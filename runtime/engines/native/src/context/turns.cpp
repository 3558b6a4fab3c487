#include "turns.h"

#include <algorithm>
#include <ctime>

namespace edgeloop::context {

namespace {

const char* const NAMES[] = {"", "system", "user", "assistant"};
constexpr char THOUGHT[] = "</think>";
enum Thought : uint8_t { KEPT, CUT, REFUSED };

// Bytes of the character at `at` if it is space, as Python's str.strip has it; else 0.
size_t space_at(const std::string& text, size_t at) {
  const uint8_t c = uint8_t(text[at]);
  if ((c >= 9 && c <= 13) || (c >= 28 && c <= 32)) return 1;
  const auto next = [&](size_t i) { return at + i < text.size() ? uint8_t(text[at + i]) : 0u; };
  if (c == 0xc2) return next(1) == 0x85 || next(1) == 0xa0 ? 2 : 0;
  const uint32_t three = uint32_t(c) << 16 | next(1) << 8 | next(2);
  const bool wide = three == 0xe19a80 || (three >= 0xe28080 && three <= 0xe2808a) || three == 0xe280a8 || three == 0xe280a9 ||
                    three == 0xe280af || three == 0xe2819f || three == 0xe38080;
  return wide ? 3 : 0;
}

size_t begin_of(const std::string& text, uint8_t strip) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t step = strip == 1 ? space_at(text, at) : strip == 2 && text[at] == '\n';
    if (!step) break;
    at += step;
  }
  return at;
}

size_t end_of(const std::string& text, size_t begin, uint8_t strip) {
  size_t end = text.size();
  while (end > begin) {
    size_t at = end - 1;
    while (at > begin && (uint8_t(text[at]) & 0xc0) == 0x80) at--;
    const bool gone = strip == 1 ? space_at(text, at) == end - at : strip == 2 && text[at] == '\n';
    if (!gone) break;
    end = at;
  }
  return end;
}

uint32_t key(const uint8_t* roles, int count) {
  uint32_t found = 0;
  for (int i = 0; i < count; i++) found |= uint32_t(roles[i]) << (8 * i);
  return found;
}

// What stands beside `key` in a list of pairs, or null.
const uint32_t* found_in(const std::vector<uint32_t>& pairs, uint32_t key) {
  for (size_t i = 0; i < pairs.size(); i += 2)
    if (pairs[i] == key) return &pairs[i + 1];
  return nullptr;
}

// Whether what stands between zero bytes of `text` is what every system can write.
bool has_plain_dates(const std::string& text) {
  bool date = false;
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == '\0') date = !date;
    if (date && text[i] == '%' && (i + 1 == text.size() || !text[i + 1] || !std::strchr("aAbBdHIjmMpSyYZ", text[++i]))) return false;
  }
  return !date;
}

// `text` with what stands between zero bytes as a date of today.
void put_dated(std::string& out, const std::string& text) {
  size_t at = 0;
  for (;;) {
    const size_t begin = text.find('\0', at), end = begin == std::string::npos ? begin : text.find('\0', begin + 1);
    out.append(text, at, begin == std::string::npos ? begin : begin - at);
    if (end == std::string::npos) return;
    const std::time_t now = std::time(nullptr);
    char date[128];
    std::tm parts = {};
#if defined(_WIN32)
    localtime_s(&parts, &now);
#else
    localtime_r(&now, &parts);
#endif
    const std::string format = text.substr(begin + 1, end - begin - 1);
    out.append(date, std::strftime(date, sizeof date, format.c_str(), &parts));
    at = end + 1;
  }
}

}  // namespace

Role role_of(const char* name) {
  for (uint8_t role = SYSTEM; role <= ASSISTANT; role++)
    if (!std::strcmp(name, NAMES[role])) return Role(role);
  fail(EL_USAGE, "role %.40s, wanted system, user or assistant", name);
}

const char* name_of(Role role) { return NAMES[role]; }

Turns::Turns(Record record) {
  order_ = record.number(2), system_ = record.number(2), late_ = record.number(1), blank_ = record.number(1);
  texts_.resize(record.number(uint32_t(record.left() / 4)));
  for (std::string& text : texts_) {
    text = record.text();
    if (!has_plain_dates(text)) record.wrong();
  }
  const auto any_text = [&] {
    const uint32_t number = record.number();
    if (number >= texts_.size()) record.wrong();
    return number;
  };
  refused_.resize(record.number(64));
  for (std::string& text : refused_) text = texts_[any_text()];
  tables_.resize(record.number(3));
  if (tables_.size() != 1 && tables_.size() != 3) record.wrong();
  for (Table& table : tables_) {
    table.between.resize(2 * record.number(1u << 12));
    for (size_t i = 0; i < table.between.size(); i += 2) table.between[i] = record.number(), table.between[i + 1] = any_text();
    table.contents.resize(2 * record.number(1u << 12));
    for (uint32_t& x : table.contents) x = record.number();
  }
  record.finish();
}

void Turns::check(const std::vector<Message>& messages) const {
  if (messages.empty()) fail(EL_USAGE, "the conversation is empty; give at least one message");
  uint32_t others = 0;
  for (size_t i = 0; i < messages.size(); i++) {
    const Message& message = messages[i];
    if (message.role == SYSTEM && system_ == 0) fail(EL_USAGE, "this template takes no system message");
    if (message.role == SYSTEM && i && system_ == 1) fail(EL_USAGE, "this template takes a system message in front only");
    if (!blank_ && begin_of(message.content, SPACE) == message.content.size())
      fail(EL_USAGE, "this template takes no message without words");
    for (const std::string& mark : refused_)
      if (message.content.find(mark) != std::string::npos)
        fail(EL_USAGE, "this template rewrites a message with %.40s in it", mark.c_str());
    if (message.role == SYSTEM) continue;
    if (alternate() && message.role != (others % 2 ? ASSISTANT : USER))
      fail(EL_USAGE, "this template alternates user and assistant, and the user begins");
    others++;
  }
  if (!others) fail(EL_USAGE, "the conversation has no message but the system's");
}

std::string Turns::render(const std::vector<Message>& messages, bool answer, uint32_t table) const {
  check(messages);
  std::vector<const Message*> said;
  for (const Message& message : messages) said.push_back(&message);
  if (late_ && messages.front().role == SYSTEM) {
    size_t last = 1;
    for (size_t i = 0; i < said.size(); i++)
      if (said[i]->role == USER) last = i;
    std::rotate(said.begin(), said.begin() + 1, said.begin() + ptrdiff_t(last));
  }
  std::vector<uint8_t> roles = {NOBODY, NOBODY};
  for (const Message* message : said) roles.push_back(message->role);
  roles.push_back(answer ? ANSWER : NOBODY);
  roles.push_back(NOBODY);
  const Table& used = tables_[table];
  std::string out;
  for (size_t i = 0; i < said.size(); i++) {
    place(out, used, &roles[i]);
    content(out, used, &roles[i + 1], said[i]->content);
  }
  place(out, used, &roles[said.size()]);
  return out;
}

void Turns::place(std::string& out, const Table& table, const uint8_t* roles) const {
  const uint32_t* const found = found_in(table.between, key(roles, 4));
  if (!found) fail(EL_USAGE, "this template does not say what stands between such messages");
  put_dated(out, texts_[*found]);
}

void Turns::content(std::string& out, const Table& table, const uint8_t* roles, const std::string& text) {
  const uint32_t* const found = found_in(table.contents, key(roles, 3));
  const uint32_t bytes = found ? *found : 0;
  const struct {
    uint8_t left, right, thought, cut;
  } rule = {uint8_t(bytes), uint8_t(bytes >> 8), uint8_t(bytes >> 16), uint8_t(bytes >> 24)};
  const size_t thought = rule.thought == KEPT ? std::string::npos : text.rfind(THOUGHT);
  const bool thinks = thought != std::string::npos;
  if (thinks && rule.thought == REFUSED) fail(EL_USAGE, "this template rewrites what was thought; leave it out of the message");
  std::string rest = thinks ? text.substr(thought + sizeof THOUGHT - 1) : text;
  if (thinks) rest.erase(0, begin_of(rest, rule.cut));
  const size_t begin = begin_of(rest, rule.left);
  out.append(rest, begin, end_of(rest, begin, rule.right) - begin);
}

}  // namespace edgeloop::context
