// What edgeloop-run is asked: words that begin with dashes, each with a value behind it or none.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "run.h"

#if !defined(_WIN32)
#include <sys/stat.h>
#endif

namespace edgeloop::run {

const char USAGE[] =
    "usage: edgeloop-run BUNDLE|model.lanes [options]\n"
    "  --prompt TEXT, -p TEXT   the text to go on with, or with --bench, how many tokens a prompt has\n"
    "  --chat                   a conversation: lines of the keyboard, an empty one ends it\n"
    "  --bench                  how fast it is: medians of --runs N (5), prompts of -p N (128) and -n N tokens (128)\n"
    "  --tokens N, -n N         most tokens of an answer (256)\n"
    "  --temperature X, --top-k N, --top-p X, --min-p X, --seed N\n"
    "  --stop TEXT              ends an answer; may be repeated\n"
    "  --exit RULE              never, depth:N, latent:X, gate:X, probe:X; router or router:X where the model has one\n"
    "  --skipped-kv NAME        exact, propagate, latest or skip\n"
    "  --system TEXT, --think, --no-think    of a conversation\n"
    "  --load FILE, --save FILE a session, before and behind\n"
    "  --threads N, --context N, --kv-bits 32|16|8|4, --no-drafts, --json\n";

namespace {

[[noreturn]] void wrong(const std::string& line) { throw Problem{2, line + "; --help has all options"}; }

uint64_t whole(const std::string& name, const std::string& value, uint64_t most) {
  char* end = nullptr;
  const uint64_t found = std::strtoull(value.c_str(), &end, 10);
  if (value.empty() || *end || value.find_first_not_of("0123456789") != std::string::npos || value.size() > 20 || found > most)
    wrong(name + " " + value + ": wanted a whole number up to " + std::to_string(most));
  return found;
}

uint32_t some(const std::string& name, const std::string& value, uint32_t most) {
  const auto found = uint32_t(whole(name, value, most));
  if (!found) wrong(name + " 0: wanted 1 or more");
  return found;
}

double real(const std::string& name, const std::string& value) {
  char* end = nullptr;
  const double found = std::strtod(value.c_str(), &end);
  if (value.empty() || *end || !std::isfinite(found)) wrong(name + " " + value + ": wanted a number");
  return found;
}

uint32_t kv_of(const std::string& value) {
  static const char* const bits[] = {"32", "16", "8", "4"};
  for (uint32_t i = 0; i < 4; i++)
    if (value == bits[i]) return i;
  wrong("--kv-bits " + value + ": wanted 32, 16, 8 or 4");
}

// The file of a bundle's folder. Throws where it has none.
std::string file_of(std::string path) {
#if defined(_WIN32)
  if (path.size() < 6 || path.compare(path.size() - 6, 6, ".lanes")) path += "/native/model.lanes";
#else
  struct stat about;
  if (!stat(path.c_str(), &about) && S_ISDIR(about.st_mode)) {
    const std::string file = path + "/native/model.lanes";
    if (stat(file.c_str(), &about)) throw Problem{1, path + " has no native/model.lanes: give a bundle's folder, of an export with --target native"};
    path = file;
  }
#endif
  return path;
}

}  // namespace

Settings settings_of(int count, char** arguments) {
  Settings s;
  std::string prompt_tokens;
  for (int i = 1; i < count; i++) {
    const std::string name = arguments[i];
    const auto is = [&](const char* a, const char* b = "") { return name == a || (*b && name == b); };
    const auto value = [&]() -> std::string {
      if (i + 1 == count) wrong(name + " wants a value");
      return arguments[++i];
    };
    if (is("--help", "-h")) s.help = true;
    else if (is("--prompt", "-p")) s.prompt = value(), s.has_prompt = true;
    else if (is("--chat")) s.chat = true;
    else if (is("--bench")) s.bench = true;
    else if (is("--json")) s.json = true;
    else if (is("--tokens", "-n")) s.tokens = some(name, value(), 1u << 24);
    else if (is("--temperature")) s.sampling.temperature = real(name, value());
    else if (is("--top-k")) s.sampling.top_k = uint32_t(whole(name, value(), 1u << 24));
    else if (is("--top-p")) s.sampling.top_p = real(name, value());
    else if (is("--min-p")) s.sampling.min_p = real(name, value());
    else if (is("--seed")) s.sampling.seed = whole(name, value(), UINT64_MAX), s.seeded = true;
    else if (is("--stop")) s.stops.push_back(value());
    else if (is("--exit")) s.exit = value();
    else if (is("--skipped-kv")) s.skipped_kv = value();
    else if (is("--system")) s.system = value();
    else if (is("--think")) s.think = true;
    else if (is("--no-think")) s.no_think = true;
    else if (is("--load")) s.load = value();
    else if (is("--save")) s.save = value();
    else if (is("--threads")) s.threads = some(name, value(), 128);
    else if (is("--context")) s.context = some(name, value(), 1u << 24);
    else if (is("--kv-bits")) s.kv = kv_of(value());
    else if (is("--no-drafts")) s.drafts = false;
    else if (is("--runs")) s.runs = some(name, value(), 1000);
    else if (name.size() > 1 && name[0] == '-') wrong(name.substr(0, 60) + ": there is no such option");
    else if (s.file.empty()) s.file = file_of(name);
    else wrong(name.substr(0, 60) + ": a second model; give one");
  }
  if (s.help) return s;
  if (s.file.empty()) wrong("no model: give a bundle's folder, or its model.lanes");
  if (s.chat && s.bench) wrong("--chat and --bench: choose one");
  if (s.chat && s.json) wrong("--chat is for people, without --json; give --prompt");
  if (s.bench && s.has_prompt) s.prompt_tokens = uint32_t(whole("--prompt", s.prompt, 1u << 24));
  if (s.bench && !s.prompt_tokens) wrong("--bench wants a prompt of at least one token");
  if (s.chat && s.has_prompt) wrong("--chat reads lines: leave --prompt out");
  if (!s.tokens) s.tokens = s.bench ? 128 : 256;
  if (!s.chat && !s.bench && !s.has_prompt && s.load.empty()) wrong("nothing to do: give --prompt, --chat, --bench or --load");
  if (s.think && s.no_think) wrong("--think and --no-think: choose one");
  if (!s.system.empty() && !s.chat) wrong("--system is of a conversation: give --chat");
  return s;
}

}  // namespace edgeloop::run
