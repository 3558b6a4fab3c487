// executorch-run: a host of a bundle's .pte in C++ alone. Token ids or text in, greedy tokens or text out, through the depth
// loop (loop.h), with the tokenizer of libedgeloop (text.h).
//
// Models with K and V for each depth, without a sliding window and without a router, that need nothing which layout.json
// has as "beyond": all others are refused by name, as is a layout.json whose weights are of another export.
// Exit code 0; 1: one line on stderr says what was wrong; 2: with the options.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bundle.h"
#include "json_string.h"
#include "loop.h"
#include "options.h"
#include "text.h"

namespace edgeloop::pte {

namespace {

using Clock = std::chrono::steady_clock;

double ms(Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }
double ms(uint64_t nanoseconds, uint64_t calls) { return calls ? double(nanoseconds) / 1e6 / double(calls) : 0; }

// An answer, and what it took.
struct Told {
  std::vector<int64_t> tokens;
  std::string text;
  const char* finish = "length";
  size_t prompt_tokens = 0;
  double first_ms = 0, ms = 0;  // to the first token, of all
  double per_second() const { return tokens.size() > 1 && ms > first_ms ? 1e3 * double(tokens.size() - 1) / (ms - first_ms) : 0; }
};

void show(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

// Goes on behind `ids`, which come behind what the loop has. `text` null: ids alone, which no token ends; `before`: all ids
// of the context, of which stop strings may have begun.
Told answer(Loop& loop, const Text* text, const std::vector<int64_t>& before, const std::vector<int64_t>& ids, const Settings& s) {
  Told told;
  told.prompt_tokens = ids.size();
  std::unique_ptr<Writer> writer = text ? std::make_unique<Writer>(*text, before, s.stops) : nullptr;
  const auto begin = Clock::now();
  const auto give = [&](const std::string& piece) {
    told.text += piece;
    if (!s.json) show(piece);
  };
  int64_t token = loop.prompt(ids.data(), ids.size());
  told.first_ms = ms(Clock::now() - begin);
  for (;;) {
    if (text && std::count(text->ends().begin(), text->ends().end(), token)) {
      told.tokens.push_back(token), told.finish = "eos";
      break;
    }
    told.tokens.push_back(token);
    if (text) give(writer->push(token));
    else if (!s.json) std::printf("%lld\n", static_cast<long long>(token));
    if (text && writer->stopped()) {
      told.finish = "stop";
      break;
    }
    if (told.tokens.size() == size_t(s.tokens)) break;
    if (!loop.room()) {
      told.finish = "context";
      break;
    }
    token = loop.step(token);
  }
  told.ms = ms(Clock::now() - begin);
  if (text && !writer->stopped()) give(writer->end());
  return told;
}

void print_json(const Told& told, const Loop& loop, double load_ms, bool has_text) {
  std::printf("{");
  if (has_text) std::printf("\"text\":%s,", json::quoted(told.text).c_str());
  std::printf("\"finish\":\"%s\",\"tokens\":[", told.finish);
  for (size_t i = 0; i < told.tokens.size(); ++i) std::printf("%s%lld", i ? "," : "", static_cast<long long>(told.tokens[i]));
  std::printf("],\"prompt_tokens\":%zu,\"prompt_chunks\":%llu,\"depths\":%d,\"load_ms\":%.3f,\"first_ms\":%.3f,\"ms\":%.3f,"
              "\"tokens_per_second\":%.3f,\"stages\":[",
              told.prompt_tokens, static_cast<unsigned long long>(loop.chunks()), loop.depths(), load_ms, told.first_ms, told.ms,
              told.per_second());
  const char* comma = "";
  for (const Spent& each : loop.spent()) {
    std::printf("%s{\"stage\":\"%s\",\"depth\":%d,\"prompt_calls\":%llu,\"prompt_ms\":%.4f,\"token_calls\":%llu,\"token_ms\":%.4f}", comma,
                each.stage.c_str(), each.depth, static_cast<unsigned long long>(each.prompt_calls), double(each.prompt_ns) / 1e6,
                static_cast<unsigned long long>(each.token_calls), ms(each.token_ns, each.token_calls));
    comma = ",";
  }
  std::printf("]}\n");
}

void print_times(const Told& told, const Loop& loop, double load_ms) {
  std::fprintf(stderr, "load %.1f ms, first token %.1f ms behind %zu (%llu chunks), then %.1f tokens/s\n", load_ms, told.first_ms,
               told.prompt_tokens, static_cast<unsigned long long>(loop.chunks()), told.per_second());
  std::fprintf(stderr, "%-16s %12s %12s\n", "", "prompt, ms", "ms a token");
  for (const Spent& each : loop.spent()) {
    const std::string name = each.stage + (each.depth ? ", depth " + std::to_string(each.depth) : "");
    std::fprintf(stderr, "%-16s %12.2f %12.3f\n", name.c_str(), double(each.prompt_ns) / 1e6, ms(each.token_ns, each.token_calls));
  }
}

bool next_line(std::string& line) {
  line.clear();
  int c;
  while ((c = std::getchar()) != EOF && c != '\n') line += char(c);
  return !line.empty();
}

void chat(Loop& loop, const Text& text, const Settings& s, double load_ms) {
  std::vector<Message> messages;
  if (!s.system.empty()) messages.emplace_back("system", s.system);
  std::vector<int64_t> context;  // whose K and V the loop has
  std::string line;
  for (;;) {
    show("> ");
    if (!next_line(line)) break;
    messages.emplace_back("user", line);
    const std::vector<int64_t> all = text.encode(text.render(messages), false);
    // What the conversation has in common with what was run is not run again; the last token is, for its logits.
    const size_t most = std::min(all.empty() ? 0 : all.size() - 1, context.size());
    const size_t same = size_t(std::mismatch(all.begin(), all.begin() + ptrdiff_t(most), context.begin()).first - all.begin());
    loop.back(same), loop.forget_spent();
    const Told told = answer(loop, &text, all, {all.begin() + ptrdiff_t(same), all.end()}, s);
    context = all;
    context.insert(context.end(), told.tokens.begin(), told.tokens.end());
    // The last token was not run. Those that left early are run again with the next message, through all depths.
    context.resize(loop.leaves_early() ? all.size() : loop.tokens());
    messages.emplace_back("assistant", told.text);
    show("\n");
    if (s.times) print_times(told, loop, load_ms);
  }
}

void run(const Settings& s) {
  const auto begin = Clock::now();
  const Bundle bundle(s.bundle);
  std::unique_ptr<Text> text = s.ids.empty() ? std::make_unique<Text>(bundle.text()) : nullptr;
  Loop loop(bundle, s.depths, s.threads);
  const double load_ms = ms(Clock::now() - begin);
  if (s.chat) return chat(loop, *text, s, load_ms);
  const std::vector<int64_t> ids = text ? text->encode(s.prompt, true) : s.ids;
  if (s.has_prompt && s.prompt.empty()) throw Problem("the prompt is empty; give at least one character");
  if (!text && ids.size() + size_t(s.tokens) > loop.room())
    throw Problem(std::to_string(ids.size()) + " and " + std::to_string(s.tokens) + " tokens are more than the context's " +
                  std::to_string(loop.room()) + "; give fewer");
  if (text && !s.json) show(s.prompt);
  const Told told = answer(loop, text.get(), ids, ids, s);
  if (s.json) print_json(told, loop, load_ms, text != nullptr);
  else if (text) show("\n");
  if (s.times) print_times(told, loop, load_ms);
}

}  // namespace

}  // namespace edgeloop::pte

int main(int count, char** words) {
  using namespace edgeloop::pte;
  try {
    const Settings settings = settings_of(count, words);
    if (settings.help) return std::fputs(USAGE, stdout) < 0;
    run(settings);
    return std::fflush(stdout) ? 1 : 0;
  } catch (const Problem& problem) {
    std::fflush(stdout);
    std::fprintf(stderr, "executorch-run: %s\n", problem.what());
    return problem.code;
  } catch (const std::bad_alloc&) {
    std::fputs("executorch-run: out of memory\n", stderr);
    return 1;
  }
}
