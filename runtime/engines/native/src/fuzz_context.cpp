// A fuzzer of what an app calls: sequences of calls by lot, with contexts that are forked, saved, loaded and stopped, texts and
// saved files of any bytes. Each call is an error code with a line, or did what it says. fuzz_context CALLS FILE …: files with a
// text section; every so often one of them is changed first, behind its tensors.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "context/context.h"
#include "test_lot.h"

using namespace edgeloop;
using edgeloop::test::Lot;

namespace {

constexpr size_t MOST_CONTEXTS = 3;
uint64_t good = 0, refused = 0;

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "fuzz_context: %s\n", what);
  std::abort();
}

void counted(int code, const char* error) {
  if (code == EL_OK) good++;
  else if (code < EL_OK || code > EL_STOPPED || !*error || std::strchr(error, '\n')) broken("a code without a line");
  else refused++;
}

std::string some_text(Lot& lot) {
  static const char* const pieces[] = {"a", " the", "\n", "</think>", "<think>", "\xc3\xa9", "\xf0\x9f\x91\xa9", "\xff", "\xe2\x82", " ",
      "Once upon", "{", "<s>", "\xe3\x80\x80", "\xed\xa0\x80", "0", "loop"};
  std::string text;
  for (uint32_t left = lot.below(8); left; left--) text += pieces[lot.below(sizeof pieces / sizeof *pieces)];
  return text;
}

std::vector<uint8_t> read_file(const char* path) {
  std::vector<uint8_t> bytes;
  if (FILE* file = std::fopen(path, "rb")) {
    uint8_t piece[1 << 16];
    for (size_t n; (n = std::fread(piece, 1, sizeof piece, file)) > 0;) bytes.insert(bytes.end(), piece, piece + n);
    std::fclose(file);
  }
  return bytes;
}

void change_some(uint8_t* bytes, size_t size, Lot& lot) {
  for (uint32_t changes = lot.below(4); size && changes; changes--) bytes[lot.below(uint32_t(size))] = uint8_t(lot.bits());
}

struct Calls {
  el_model* model;
  el_text* text;
  Lot& lot;
  std::string saved;
  std::vector<el_context*> contexts{};
  char error[EL_ERROR_SIZE] = "";
  uint32_t stop_at = 0;

  static int on_piece(void* user, const el_piece* piece) {
    Calls& own = *static_cast<Calls*>(user);
    if (piece->struct_bytes != sizeof *piece || (piece->bytes && !piece->utf8)) broken("a piece that is none");
    if (own.stop_at && !--own.stop_at) {
      if (own.lot.below(2)) return 1;
      el_context_stop(own.contexts.front());
    }
    return 0;
  }

  void open() {
    static const char* const exits[] = {nullptr, "never", "depth:1", "depth:2", "latent:0.5", "latent:", "gate:0.5", "probe", "router", "router:0.4", "x"};
    static const char* const skipped[] = {nullptr, nullptr, nullptr, "exact", "propagate", "latest", "skip", "none", "y"};
    el_context_options options = {};
    options.struct_bytes = sizeof options - (lot.below(64) == 0);
    options.capacity = lot.below(16) ? 16 + lot.below(48) : lot.bits();
    options.kv = lot.below(16) ? lot.below(4) : lot.bits();
    options.drafts = lot.below(4) == 0;
    options.think = lot.below(8) ? 0 : lot.below(6);
    options.answer_room = lot.below(2) ? lot.below(24) : 0;
    options.exit = exits[lot.below(11)];
    options.skipped_kv = skipped[lot.below(9)];
    el_context* made = nullptr;
    const int code = el_context_new(model, lot.below(8) ? text : nullptr, &options, &made, error);
    counted(code, error);
    if (code == EL_OK) contexts.push_back(made);
  }

  void answer(el_context* context) {
    const std::string stop = some_text(lot), other = "the";
    const char* stops[] = {stop.c_str(), other.c_str()};
    const el_sampling sampling = {sizeof sampling, lot.below(4), lot.below(8) ? lot.below(3) * 0.5 : -1, lot.below(8) ? 0.9 : 0, 0, lot.bits()};
    el_answer_options options = {sizeof options, lot.below(24), lot.below(8) == 0, lot.below(4) ? 0 : lot.below(3), stops, lot.below(2) ? &sampling : nullptr};
    el_answer told = {};
    told.struct_bytes = sizeof told;
    stop_at = lot.below(4) ? 0 : 1 + lot.below(6);
    size_t before = 0, after = 0;
    el_context_length(context, &before, nullptr, error);
    std::swap(contexts.front(), *std::find(contexts.begin(), contexts.end(), context));
    const int code = el_context_answer(context, &options, on_piece, this, &told, error);
    counted(code, error);
    el_context_length(context, &after, nullptr, error);
    if (code == EL_OK && (after != before + told.tokens || told.why > EL_WHY_STOPPED)) broken("an answer of other tokens");
  }

  void look(el_context* context) {
    int64_t ids[4];
    size_t tokens = 0, messages = 0;
    uint64_t exits[64];
    counted(el_context_ids(context, ids, lot.below(5), &tokens, error), error);
    counted(el_context_length(context, &tokens, &messages, error), error);
    el_message message;
    counted(el_context_message(context, lot.below(uint32_t(messages) + 1), &message, error), error);
    el_context_stats stats = {};
    stats.struct_bytes = sizeof stats, stats.depths = lot.below(8), stats.exits = lot.below(2) ? exits : nullptr;
    counted(el_context_stats_read(context, &stats, error), error);
  }

  void files(el_context* context) {
    if (lot.below(2)) return counted(el_context_save(context, saved.c_str(), error), error);
    if (lot.below(2)) {
      std::vector<uint8_t> bytes = read_file(saved.c_str());
      change_some(bytes.data(), lot.below(2) ? bytes.size() : std::min<size_t>(bytes.size(), 1500), lot);
      if (lot.below(4) == 0) bytes.resize(lot.below(uint32_t(bytes.size()) + 1));
      if (FILE* file = bytes.empty() ? nullptr : std::fopen(saved.c_str(), "wb"))
        std::fwrite(bytes.data(), 1, bytes.size(), file), std::fclose(file);
    }
    counted(el_context_load(context, saved.c_str(), error), error);
  }

  void render() {
    static const char* const roles[] = {"system", "user", "assistant", "tool"};
    std::vector<std::string> contents;
    std::vector<el_message> messages;
    for (uint32_t left = lot.below(6); left; left--) contents.push_back(some_text(lot));
    for (const std::string& each : contents) messages.push_back({roles[lot.below(16) ? messages.size() % 2 + 1 : lot.below(4)], each.c_str()});
    char room[64];
    size_t bytes = 0;
    counted(el_render(model, messages.data(), uint32_t(messages.size()), lot.below(16) ? lot.below(2) : lot.below(10), room, lot.below(65), &bytes, error), error);
    if (contexts.empty()) return;
    counted(el_context_chat(contexts[lot.below(uint32_t(contexts.size()))], messages.data(), uint32_t(messages.size()), error), error);
  }

  void once() {
    if (contexts.empty() || (contexts.size() < MOST_CONTEXTS && lot.below(24) == 0)) return open();
    const uint32_t number = lot.below(uint32_t(contexts.size()));
    el_context* const context = contexts[number];
    const std::string content = some_text(lot);
    switch (lot.below(16)) {
      case 0: {
        int64_t ids[6];
        for (int64_t& id : ids) id = int64_t(lot.below(model->model->header().vocab_size + (lot.below(64) == 0))) - (lot.below(256) == 0);
        return counted(el_context_append(context, ids, lot.below(7), error), error);
      }
      case 1: return counted(el_context_text(context, content.data(), content.size(), error), error);
      case 2:
      case 3: return counted(el_context_say(context, lot.below(16) ? "user" : "assistant", content.c_str(), error), error);
      case 4:
      case 5:
      case 6:
      case 7: return answer(context);
      case 8: return counted(el_context_seek(context, lot.below(64), error), error);
      case 9: return counted(el_context_again(context, error), error);
      case 10: {
        el_context* other = nullptr;
        const int code = el_context_fork(context, &other, error);
        counted(code, error);
        if (code != EL_OK) return;
        contexts.push_back(other);
        if (contexts.size() <= MOST_CONTEXTS) return;
        el_context_free(contexts.front());
        return void(contexts.erase(contexts.begin()));
      }
      case 11: return files(context);
      case 12: return render();
      case 13: return look(context);
      case 14: return lot.below(16) ? void() : el_context_stop(context);
      default:
        if (lot.below(8)) return;
        el_context_free(context);
        contexts.erase(contexts.begin() + number);
    }
  }
};

// `calls` of a model whose bytes these are; more or less of them where it is none.
uint64_t run(std::vector<uint8_t> bytes, Lot& lot, const std::string& saved, uint64_t calls) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes.size() + 64)) return 1;
  uint64_t done = 1;
  try {
    if (lot.below(4) == 0) {
      file::Header header;
      std::memcpy(&header, bytes.data(), sizeof header);
      if (header.text_bytes && header.text + header.text_bytes <= bytes.size()) change_some(bytes.data() + header.text, header.text_bytes, lot);
    }
    std::memcpy(memory, bytes.data(), bytes.size());
    el_open_options options = {};
    options.threads = 1;
    el_model model(Model::read(static_cast<uint8_t*>(memory), bytes.size(), false), options);
    Calls own{&model, nullptr, lot, saved};
    if (el_text_open(&model, &own.text, own.error) != EL_OK) own.text = nullptr;
    for (; done < calls; done++) own.once();
    for (el_context* context : own.contexts) el_context_free(context);
    el_text_close(own.text);
  } catch (const Error&) {
  } catch (const std::bad_alloc&) {
  }
  std::free(memory);
  return done;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return std::fprintf(stderr, "usage: fuzz_context CALLS FILE ...\n"), 2;
  const uint64_t calls = std::strtoull(arguments[1], nullptr, 10);
  std::vector<std::vector<uint8_t>> files;
  for (int i = 2; i < count; i++) {
    files.push_back(read_file(arguments[i]));
    if (files.back().size() < sizeof(file::Header)) return std::fprintf(stderr, "%s is no model.lanes file\n", arguments[i]), 2;
  }
  const char* folder = std::getenv("TMPDIR");
  const std::string saved = std::string(folder ? folder : "/tmp") + "/fuzz_context." + std::to_string(getpid());
  uint64_t made = 0;
  for (uint32_t round = 1; made < calls; round++) {
    Lot lot(round);
    made += run(files[round % files.size()], lot, saved, std::min<uint64_t>(200, calls - made));
  }
  std::remove(saved.c_str());
  std::printf("%llu calls, %llu of which did something and %llu were refused in one line\n", (unsigned long long)made,
      (unsigned long long)good, (unsigned long long)refused);
  return good == 0;
}
