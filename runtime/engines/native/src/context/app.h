// What a host in an app needs to know of a model, as its file has it: who it is, what ends a text, exit rules, turns.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "exits.h"
#include "turns.h"

namespace edgeloop::context {

// Who a model is, and what ends a text.
struct About {
  // The record ABOUT, or no bytes: then there is no name and nothing that ends a text. `last`: the largest id.
  void read(View<uint8_t> bytes, uint32_t last);

  std::string name, identity, edgeloop;  // identity: a hash of program, weights and tokenizer; edgeloop: the version
  std::vector<int64_t> ends;
};

struct App : About {
  // Of a file without records there are no turns either. Throws EL_FORMAT for damaged ones.
  explicit App(const el_model& model);

  std::unique_ptr<Exits> exits;
  std::unique_ptr<Turns> turns;  // null: none
  std::vector<const char*> rules;  // names of calibrated ones
};

}  // namespace edgeloop::context
