// edgeloop-run: a host in C++ for boards, over the C interface alone. What its parts share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "edgeloop.h"
#include "json_string.h"

namespace edgeloop::run {

struct Settings {
  std::string file;  // model.lanes
  std::string prompt, exit, skipped_kv, load, save, system;
  std::vector<std::string> stops;
  bool has_prompt = false, chat = false, bench = false, json = false, help = false, think = false, no_think = false, seeded = false;
  uint32_t tokens = 0, threads = 0, context = 0, kv = EL_KV_F32, prompt_tokens = 128, runs = 5;
  bool drafts = true;
  el_sampling sampling = {sizeof(el_sampling), 0, 0, 1, 0, 0};
};

// What goes wrong, in one line, and the exit code.
struct Problem {
  int code;
  std::string line;
};

// Throws a Problem for what no option is.
Settings settings_of(int count, char** arguments);
extern const char USAGE[];

// Throws a Problem unless `code` is EL_OK.
void check(int code, const char* error);

// A model, its text if it has one, and a context of it; closed at the end of its life.
struct Host {
  explicit Host(const Settings& settings);
  ~Host();
  Host(const Host&) = delete;
  // Another context: as `settings` says, or where `any_end`, with no drafts. Whoever asked frees it.
  el_context* context(const Settings& settings) const;

  el_model* model = nullptr;
  el_text* text = nullptr;
  el_about about = {};
  el_info info = {};
  double open_ms = 0;
};

using json::quoted;
uint64_t peak_bytes();    // of this process; 0 where the system does not say
std::string processor();  // "" where it does not
double milliseconds(uint64_t nanoseconds);
bool at_terminal();       // whether a person types what it is given
void complain(const char* line);  // on stderr

void generate(const Host& host, const Settings& settings);
void chat(const Host& host, const Settings& settings);
void bench(const Host& host, const Settings& settings);

}  // namespace edgeloop::run
