// What the handles of the C interface are: a model with its threads and memory, a session with its K and V.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <vector>

#include "alone.h"
#include "cache.h"
#include "decode/drafts.h"
#include "edgeloop.h"
#include "pass.h"

namespace edgeloop::context {
struct App;
}

// A model that was opened. One call computes at a time: `computing`.
struct el_model {
  el_model(std::unique_ptr<edgeloop::Model> model, const el_open_options& options);
  ~el_model();

  std::unique_ptr<edgeloop::Model> model;
  bool int8;
  const edgeloop::Kernels* kernels;
  edgeloop::Compiled prologue, epilogue, head;
  std::vector<edgeloop::Compiled> blocks;                // each once
  std::vector<uint32_t> block_at, fill_at;               // of each depth of the schedule: of `blocks`, or NONE

  edgeloop::Alone computing;
  std::unique_ptr<edgeloop::Team> team;
  edgeloop::Turns turns;
  edgeloop::Workspace space;
  std::unique_ptr<edgeloop::Profile> profile;  // for who asks what nodes cost
  edgeloop::Buffer states, hidden;  // between the stages of a prompt; between epilogue and head
  // What was learnt of drafts, by el_rule and how often the loop runs: answers and sessions go on from it.
  std::map<std::pair<uint32_t, uint32_t>, edgeloop::decode::Drafts> drafts;
  std::unique_ptr<edgeloop::context::App> app;  // what it is to a host in an app

  // What is run at a depth, or fills it; throws an Error with EL_USAGE for one that the loop has not.
  const edgeloop::Compiled& at_depth(uint32_t depth, bool fill) const;
  uint32_t depths() const { return uint32_t(model->schedule.count); }
  bool any_depth() const { return model->header().deeper != edgeloop::file::NONE; }

 private:
  uint32_t add_block(uint32_t stage, edgeloop::Role role, std::vector<std::pair<uint32_t, edgeloop::Role>>& known);
};

struct el_session {
  el_session(el_model& model, const el_session_options& options);

  el_model& model;
  edgeloop::Caches caches;
  std::atomic<bool> stop{false};
  uint64_t calls = 0, rows = 0;
  uint32_t threads = 0;  // of the last pass
};
