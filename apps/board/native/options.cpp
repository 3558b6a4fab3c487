// BUNDLE, then words that begin with dashes, or how many tokens and the ids of a prompt.
#include "options.h"

#include <cstdlib>

#include "bundle.h"

namespace edgeloop::pte {

const char USAGE[] =
    "usage: executorch-run BUNDLE COUNT ID…       the next COUNT tokens behind these\n"
    "       executorch-run BUNDLE [options]\n"
    "  --prompt TEXT, -p TEXT   the text to go on with\n"
    "  --chat                   a conversation: lines of the keyboard, an empty one ends it\n"
    "  --system TEXT            what the conversation begins with\n"
    "  --tokens N, -n N         most tokens of an answer (256)\n"
    "  --stop TEXT              ends an answer; may be repeated\n"
    "  --depths N               tokens of an answer leave after N depths (or EDGELOOP_DEPTHS=N)\n"
    "  --threads N              1: the caller's alone (as many as ExecuTorch's pool has)\n"
    "  --times                  what took how long, on stderr; --json: all of it as JSON\n";

namespace {

constexpr long MOST = 1 << 24;

[[noreturn]] void wrong(const std::string& line) { throw Problem(2, line + "; --help has all options"); }

long whole(const std::string& name, const std::string& value, long most) {
  if (value.empty() || value.find_first_not_of("0123456789") != std::string::npos || value.size() > 9 || std::atol(value.c_str()) > most)
    wrong(name + " " + value.substr(0, 60) + ": wanted a whole number up to " + std::to_string(most));
  return std::atol(value.c_str());
}

}  // namespace

Settings settings_of(int count, char** words) {
  Settings s;
  bool counted = false;
  if (const char* depths = std::getenv("EDGELOOP_DEPTHS")) {
    s.depths = int(whole("EDGELOOP_DEPTHS", depths, MOST));
    if (!s.depths) wrong("EDGELOOP_DEPTHS 0: wanted at least one depth");
  }
  for (int i = 1; i < count; ++i) {
    const std::string name = words[i];
    const auto is = [&](const char* a, const char* b = "") { return name == a || (*b && name == b); };
    const auto value = [&]() -> std::string {
      if (i + 1 == count) wrong(name + " wants a value");
      return words[++i];
    };
    const auto number = [&](int least) {
      const int found = int(whole(name, value(), MOST));
      if (found < least) wrong(name + " 0: wanted at least 1");
      return found;
    };
    if (is("--help", "-h")) s.help = true;
    else if (is("--prompt", "-p")) s.prompt = value(), s.has_prompt = true;
    else if (is("--chat")) s.chat = true;
    else if (is("--system")) s.system = value();
    else if (is("--tokens", "-n")) s.tokens = number(1);
    else if (is("--stop")) s.stops.push_back(value());
    else if (is("--depths")) s.depths = number(1);
    else if (is("--threads")) s.threads = number(1);
    else if (is("--times")) s.times = true;
    else if (is("--json")) s.json = true;
    else if (name.size() > 1 && name[0] == '-') wrong(name.substr(0, 60) + ": there is no such option");
    else if (s.bundle.empty()) s.bundle = name;
    else if (!counted && !s.tokens) s.tokens = int(whole("COUNT", name, MOST)), counted = true;
    else s.ids.push_back(whole("ID", name, MOST));
  }
  if (s.help) return s;
  if (s.bundle.empty()) wrong("no bundle: give its folder");
  if (int(s.has_prompt) + int(s.chat) + int(!s.ids.empty()) != 1)
    wrong("wanted one of --prompt, --chat, or COUNT and the ids of a prompt's tokens");
  if (!s.ids.empty() && !s.tokens) wrong("COUNT 0: wanted at least one token");
  if (!s.ids.empty() && !s.stops.empty()) wrong("--stop is of texts: give --prompt or --chat");
  if (s.chat && s.json) wrong("--chat is for people, without --json; give --prompt");
  if (!s.chat && !s.system.empty()) wrong("--system is of a conversation: give --chat");
  if (!s.tokens) s.tokens = 256;
  return s;
}

}  // namespace edgeloop::pte
