// What executorch-run is asked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgeloop::pte {

struct Settings {
  std::string bundle, prompt, system;
  std::vector<int64_t> ids;
  std::vector<std::string> stops;
  bool has_prompt = false, chat = false, json = false, times = false, help = false;
  int tokens = 0, depths = 0, threads = 0;
};

// Throws a Problem for what no option is.
Settings settings_of(int count, char** words);
extern const char USAGE[];

}  // namespace edgeloop::pte
