// Exit rules by name, as `--exit` has them: the twin of runtime/decode/policy_choice.py for what a decoder runs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../engine.h"
#include "record.h"

namespace edgeloop::context {

// Numbers of a head, [size[0]][size[1]] …
struct Head {
  std::string name;
  std::vector<uint32_t> sizes;
  std::vector<float> numbers;
};

struct Calibrated {
  std::string name;
  uint32_t skipped;  // el_skipped
  std::vector<float> thresholds;
};

// What of a model decides where tokens stop.
struct Exits {
  uint32_t depths = 0;
  uint32_t routing = 0;  // 0: no router; else EL_RULE_EXPERT or EL_RULE_TOKEN
  uint32_t squash = 0, gated = 0, auxiliary = 0;
  float temperature = 1, alpha = 1, half_way = 0.5f;
  std::vector<float> capacity;
  std::vector<Calibrated> calibrated;
  std::vector<Head> heads;

  // Those of a file without the record: every token runs all depths, or a number of them, or a latent rule's.
  explicit Exits(const el_model& model);
  Exits(const el_model& model, Record record);
  const Head* head(const char* name) const;
};

// A policy, and the names that it was chosen by.
struct ChosenPolicy {
  std::string exit, skipped, kv;  // as a saved session has them
  el_policy policy;               // points into `thresholds` and the Exits
  std::vector<float> thresholds;
};

// `exit`, `skipped`: NULL for what the model was trained for, or a rule calibrated with. Throws EL_USAGE, which names what is wrong.
std::unique_ptr<ChosenPolicy> choose_policy(const el_model& model, const Exits& exits, const char* exit, const char* skipped);

}  // namespace edgeloop::context
