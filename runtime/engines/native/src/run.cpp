// edgeloop-run BUNDLE|model.lanes: text, chat and measurements without Python, what one copies to a board.
// Exit code 0; 1: one line on stderr says what was wrong; 2: with the options; 130: Ctrl-C.
#include "run.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#if defined(_WIN32)
#include <io.h>
#else
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace edgeloop::run {

void check(int code, const char* error) {
  if (code != EL_OK) throw Problem{1, error};
}

double milliseconds(uint64_t nanoseconds) { return double(nanoseconds) / 1e6; }

uint64_t peak_bytes() {
#if defined(_WIN32)
  return 0;
#else
  rusage used = {};
  if (getrusage(RUSAGE_SELF, &used)) return 0;
#if defined(__APPLE__)
  return uint64_t(used.ru_maxrss);
#else
  return uint64_t(used.ru_maxrss) * 1024;
#endif
#endif
}

bool at_terminal() {
#if defined(_WIN32)
  return _isatty(0);
#else
  return isatty(0);
#endif
}

void complain(const char* line) { std::fprintf(stderr, "edgeloop-run: %s\n", line); }

std::string processor() {
  std::string found;
  if (std::FILE* file = std::fopen("/proc/cpuinfo", "r")) {
    char line[256];
    while (found.empty() && std::fgets(line, sizeof line, file)) {
      const char* value = std::strchr(line, ':');
      const bool named = !std::strncmp(line, "model name", 10) || !std::strncmp(line, "Model", 5);
      if (named && value && value[1]) found.assign(value + 2, std::strcspn(value + 2, "\n"));
    }
    std::fclose(file);
  }
  return found;
}

Host::Host(const Settings& settings) {
  char error[EL_ERROR_SIZE] = "";
  const auto begin = std::chrono::steady_clock::now();
  el_open_options options = {};
  options.struct_bytes = sizeof options;
  options.threads = settings.threads;
  int code = el_open(settings.file.c_str(), &options, &model, error);
  if (code == EL_FORMAT) throw Problem{1, settings.file + ": " + error};
  check(code, error);
  about.struct_bytes = sizeof about;
  info.struct_bytes = sizeof info;
  code = el_model_about(model, &about, error);
  if (code == EL_OK) code = el_model_info(model, &info, error);
  const bool known = code == EL_OK;
  if (known && !settings.bench) code = el_text_open(model, &text, error);
  if (code != EL_OK) {
    el_close(model);
    if (known && code == EL_USAGE)
      throw Problem{1, settings.file + " has no tokenizer, so only --bench runs: export again, with a tokenizer.json in the checkpoint's folder"};
    check(code, error);
  }
  open_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

Host::~Host() {
  el_text_close(text);
  el_close(model);
}

el_context* Host::context(const Settings& settings) const {
  el_context_options options = {};
  options.struct_bytes = sizeof options;
  options.capacity = settings.context;
  options.kv = settings.kv;
  options.drafts = settings.drafts ? EL_DRAFTS_AUTO : EL_DRAFTS_NEVER;
  options.think = settings.think ? EL_RENDER_THINK : settings.no_think ? EL_RENDER_NO_THINK : 0;
  options.answer_room = settings.chat ? settings.tokens : 0;
  options.exit = settings.exit.empty() ? nullptr : settings.exit.c_str();
  options.skipped_kv = settings.skipped_kv.empty() ? nullptr : settings.skipped_kv.c_str();
  el_context* made = nullptr;
  char error[EL_ERROR_SIZE] = "";
  check(el_context_new(model, text, &options, &made, error), error);
  return made;
}

}  // namespace edgeloop::run

int main(int count, char** arguments) {
  using namespace edgeloop::run;
  try {
    const Settings settings = settings_of(count, arguments);
    if (settings.help) return std::fputs(USAGE, stdout) < 0;
    const Host host(settings);
    if (settings.bench) bench(host, settings);
    else if (settings.chat) chat(host, settings);
    else generate(host, settings);
    if (!std::fflush(stdout) && !std::ferror(stdout)) return 0;
    throw Problem{1, std::string("not all of the output is written: ") + std::strerror(errno)};
  } catch (const Problem& problem) {
    std::fflush(stdout);
    if (!problem.line.empty()) complain(problem.line.c_str());
    return problem.code;
  } catch (...) {
    complain("out of memory");
    return 1;
  }
}
