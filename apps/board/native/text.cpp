// Calls of edgeloop_text.h, whose codes become Problems.
#include "text.h"

#include "bundle.h"

namespace edgeloop::pte {

namespace {

char error[EL_ERROR_SIZE];

void check(int code) {
  if (code != EL_OK) throw Problem(error);
}

}  // namespace

Text::Text(const std::string& path) {
  const int code = el_text_read(path.c_str(), &text_, error);
  if (code == EL_FILE)
    throw Problem(std::string(error) + "; its tokenizer is of a kind that is left to Python hosts, or the bundle is older than "
                  "this file: give token ids, or export the checkpoint again");
  if (code != EL_OK) throw Problem(path + ": " + error);
  size_t count = 0;
  check(el_text_ends(text_, nullptr, 0, &count, error));
  ends_.resize(count);
  check(el_text_ends(text_, ends_.data(), count, &count, error));
}

std::vector<int64_t> Text::encode(const std::string& text, bool special) const {
  std::vector<int64_t> ids(text.size() / 3 + 16);
  for (;;) {
    size_t count = 0;
    check(el_encode(text_, text.data(), text.size(), special, ids.data(), ids.size(), &count, error));
    const bool all = count <= ids.size();
    ids.resize(count);
    if (all) return ids;
  }
}

std::string Text::render(const std::vector<Message>& messages) const {
  std::vector<el_message> given;
  for (const Message& message : messages) given.push_back({message.first.c_str(), message.second.c_str()});
  std::string out;
  for (;;) {
    size_t bytes = 0;
    check(el_text_render(text_, given.data(), uint32_t(given.size()), EL_RENDER_ANSWER, out.data(), out.size(), &bytes, error));
    const bool all = bytes <= out.size();
    out.resize(bytes);
    if (all) return out;
  }
}

Writer::Writer(const Text& text, const std::vector<int64_t>& prompt, const std::vector<std::string>& stops) {
  std::vector<const char*> given;
  for (const std::string& stop : stops) given.push_back(stop.c_str());
  check(el_writer_new(text.get(), prompt.data(), prompt.size(), given.data(), uint32_t(given.size()), &writer_, error));
}

std::string Writer::push(int64_t token) {
  const char* utf8 = nullptr;
  size_t bytes = 0;
  uint32_t stopped = 0;
  check(el_writer_push(writer_, token, &utf8, &bytes, &stopped, error));
  stopped_ = stopped;
  return {utf8, bytes};
}

std::string Writer::end() {
  const char* utf8 = nullptr;
  size_t bytes = 0;
  check(el_writer_end(writer_, &utf8, &bytes, error));
  return {utf8, bytes};
}

}  // namespace edgeloop::pte
