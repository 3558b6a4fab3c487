// What a host in an app needs to know of a model, as its file has it: who it is, what ends a text, exit rules, turns.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "exits.h"
#include "turns.h"

namespace edgeloop::context {

struct App {
  // Of a file without records there are no turns, no name and nothing that ends a text. Throws EL_FORMAT for damaged ones.
  explicit App(const el_model& model);

  std::string name, identity, edgeloop;  // identity: a hash of program, weights and tokenizer; edgeloop: the version
  std::vector<int64_t> ends;
  std::unique_ptr<Exits> exits;
  std::unique_ptr<Turns> turns;  // null: none
  std::vector<const char*> rules;  // names of calibrated ones
};

}  // namespace edgeloop::context
