// Text as it comes: of a prompt, and of a conversation. Ctrl-C stops an answer, and where there is none, the program. Of what
// a person types at a terminal and the context refuses, the line is shown and the conversation goes on.
#include <csignal>
#include <cstdio>
#include <string>

#include "run.h"

namespace edgeloop::run {

namespace {

el_context* answering = nullptr;
volatile std::sig_atomic_t interrupted = 0, waiting = 0;

extern "C" void on_interrupt(int) {
  if (interrupted || waiting || !answering) std::_Exit(130);  // a second time, or while nothing is answered
  interrupted = 1;
  el_context_stop(answering);
}

// A line of the keyboard, without its end; false behind the last one.
bool next_line(std::string& line) {
  line.clear();
  int c;
  waiting = 1;
  while ((c = std::getchar()) != EOF && c != '\n') line += char(c);
  waiting = 0;
  return c != EOF || !line.empty();
}

// A context, which Ctrl-C stops while it lives.
struct Living {
  explicit Living(el_context* made) : context(made) { answering = made, std::signal(SIGINT, on_interrupt); }
  ~Living() {
    std::signal(SIGINT, SIG_DFL);
    answering = nullptr;
    el_context_free(context);
  }
  el_context* const context;
};

struct Shown {
  bool json;
  std::string text, pieces;
};

int show(void* user, const el_piece* piece) {
  Shown& shown = *static_cast<Shown*>(user);
  if (shown.json) {
    char numbers[96];
    std::snprintf(numbers, sizeof numbers, "%s{\"token\":%lld,\"depth\":%u,\"ms\":%.3f}", shown.pieces.empty() ? "" : ",",
        (long long)piece->token, piece->depth, milliseconds(piece->nanoseconds));
    shown.pieces += numbers;
    shown.text.append(piece->utf8, piece->bytes);
    return 0;
  }
  return std::fwrite(piece->utf8, 1, piece->bytes, stdout) != piece->bytes || std::fflush(stdout);
}

el_answer answer(el_context* context, const Settings& settings, const el_sampling& sampling, Shown& shown) {
  std::vector<const char*> stops;
  for (const std::string& stop : settings.stops) stops.push_back(stop.c_str());
  el_answer_options options = {};
  options.struct_bytes = sizeof options;
  options.max_tokens = settings.tokens;
  options.stops = stops.data(), options.stops_count = uint32_t(stops.size());
  options.sampling = &sampling;
  el_answer told = {};
  told.struct_bytes = sizeof told;
  char error[EL_ERROR_SIZE] = "";
  check(el_context_answer(context, &options, show, &shown, &told, error), error);
  return told;
}

void load(el_context* context, const Settings& settings) {
  char error[EL_ERROR_SIZE] = "";
  if (!settings.load.empty()) check(el_context_load(context, settings.load.c_str(), error), error);
}

void save(el_context* context, const Settings& settings) {
  char error[EL_ERROR_SIZE] = "";
  if (!settings.save.empty()) check(el_context_save(context, settings.save.c_str(), error), error);
}

}  // namespace

void generate(const Host& host, const Settings& settings) {
  static const char* const whys[] = {"eos", "stop", "length", "context", "stopped"};
  const Living living(host.context(settings));
  char error[EL_ERROR_SIZE] = "";
  load(living.context, settings);
  if (settings.has_prompt && settings.prompt.empty()) throw Problem{1, "the prompt is empty; give at least one character"};
  check(el_context_text(living.context, settings.prompt.data(), settings.prompt.size(), error), error);
  if (!settings.json) std::fwrite(settings.prompt.data(), 1, settings.prompt.size(), stdout);
  Shown shown{settings.json, "", ""};
  el_answer told = {};
  try {
    told = answer(living.context, settings, settings.sampling, shown);
  } catch (const Problem&) {
    if (!settings.json) std::printf("\n");  // its line is not one with the prompt
    throw;
  }
  if (!settings.json) std::printf("\n");
  save(living.context, settings);
  if (settings.json) {
    std::printf("{\"text\":%s,\"finish\":\"%s\",\"tokens\":%u,\"prompt_tokens\":%u,\"prompt_ms\":%.3f,\"first_ms\":%.3f,"
                "\"ms\":%.3f,\"open_ms\":%.3f,\"peak_bytes\":%llu,\"steps\":[%s]}\n",
        quoted(shown.text).c_str(), whys[told.why], told.tokens, told.prompt_tokens, milliseconds(told.prompt_nanoseconds),
        milliseconds(told.first_nanoseconds), milliseconds(told.nanoseconds), host.open_ms, (unsigned long long)peak_bytes(),
        shown.pieces.c_str());
  }
  if (interrupted) throw Problem{130, ""};
}

void chat(const Host& host, const Settings& settings) {
  const Living living(host.context(settings));
  el_context* context = living.context;
  char error[EL_ERROR_SIZE] = "";
  load(context, settings);
  size_t messages = 0;
  check(el_context_length(context, nullptr, &messages, error), error);
  const bool turns = host.about.turns != EL_TURNS_NONE;
  if (!turns) complain("this model has no turns for conversations: each line is continued by itself, without memory");
  if (!settings.system.empty() && !messages) check(el_context_say(context, "system", settings.system.c_str(), error), error);
  el_sampling sampling = settings.sampling;
  std::string line;
  for (;;) {
    std::fputs("> ", stdout), std::fflush(stdout);
    if (!next_line(line)) {
      if (at_terminal()) std::printf("\n");
      break;
    }
    if (line.empty()) break;
    if (!turns) check(el_context_seek(context, 0, error), error);
    const int said = turns ? el_context_say(context, "user", line.c_str(), error) : el_context_text(context, line.data(), line.size(), error);
    if (said == EL_USAGE && at_terminal()) {
      complain(error);
      continue;
    }
    check(said, error);
    Shown shown{false, "", ""};
    interrupted = 0;
    const el_answer told = answer(context, settings, sampling, shown);
    if (!settings.seeded) sampling.seed++;
    if (told.forgotten) std::printf("\n[%u old messages made room]", told.forgotten);
    std::printf("\n");
    if (std::ferror(stdout)) break;
    save(context, settings);
    if (interrupted && told.why != EL_WHY_STOPPED) throw Problem{130, ""};  // too late for the answer
  }
}

}  // namespace edgeloop::run
