#include "engine.h"

#include <algorithm>
#include <thread>

#include "context/app.h"
#include "error.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

using namespace edgeloop;

namespace {

constexpr uint32_t MOST_THREADS = 128;
constexpr uint32_t MOST_SLOTS = 1u << 22;
constexpr size_t MOST_BLOCKS = 256;

const Kernels* chosen(const char* name) {
  const Kernels* found = name ? kernels_named(name) : choose_kernels();
  if (!found) {
    const char* asked = name ? name : "as EDGELOOP_KERNELS says";
    fail(EL_USAGE, "there are no kernels %.60s for this processor; leave them out for the best ones", asked);
  }
  return found;
}

// Throws an Error unless the system lets this process's threads run on each of `count` processors. A thread of its own
// tries them: where the caller's may run does not say where others may.
void check_cpus(const int32_t* cpus, uint32_t count) {
#if defined(__linux__)
  if (count > CPU_SETSIZE) fail(EL_USAGE, "%u processors, wanted %d at most", count, CPU_SETSIZE);
  int32_t refused = 0;
  bool all = true;
  std::thread([&] {
    for (uint32_t i = 0; all && i < count; i++) {
      cpu_set_t set;
      CPU_ZERO(&set);
      if (cpus[i] >= 0 && cpus[i] < CPU_SETSIZE) CPU_SET(cpus[i], &set);
      all = !pthread_setaffinity_np(pthread_self(), sizeof set, &set);
      refused = cpus[i];
    }
  }).join();
  if (!all) fail(EL_USAGE, "this process may not use processor %d; name others to pin threads to", refused);
#else
  (void)cpus, (void)count;
  fail(EL_USAGE, "threads can be pinned on Linux only; name no processors");
#endif
}

TeamOptions team_options(const el_open_options& options, std::vector<int>& cpus) {
  TeamOptions found;
  const uint32_t cores = std::max(1u, std::thread::hardware_concurrency());
  if (options.threads > MOST_THREADS) fail(EL_USAGE, "%u threads, wanted %u at most", options.threads, MOST_THREADS);
  found.threads = int(options.threads ? options.threads : std::min(cores, MOST_THREADS));
  if (options.pinned && !options.cpus) fail(EL_USAGE, "pinned is %u, and cpus are not given", options.pinned);
  if (!options.pinned) return found;
  check_cpus(options.cpus, options.pinned);
  for (int i = 0; i < found.threads; i++) cpus.push_back(options.cpus[uint32_t(i) % options.pinned]);
  found.cpus = cpus.data();
  return found;
}

uint32_t slots_of(const el_model& model, const el_session_options& options) {
  const file::Header& h = model.model->header();
  const uint32_t own = h.shares_kv ? 1 : model.depths();
  const uint32_t most = model.any_depth() && !h.shares_kv ? file::MAX_DEPTHS : own;
  if (options.slots > most)
    fail(EL_USAGE, "%u KV slots a sequence, wanted 1 to %u, which the model has", options.slots, most);
  const uint32_t slots = options.slots ? options.slots : own;
  if (options.sequences < 1 || options.sequences > MOST_SLOTS / slots)
    fail(EL_USAGE, "%u sequences, wanted 1 to %u", options.sequences, MOST_SLOTS / slots);
  if (options.capacity < 1 || options.capacity > h.context_length)
    fail(EL_USAGE, "a capacity of %u tokens, wanted 1 to %u", options.capacity, h.context_length);
  if (options.kv > EL_KV_I4) fail(EL_USAGE, "there is no el_kv %u", options.kv);
  return slots;
}

}  // namespace

el_model::el_model(std::unique_ptr<Model> opened, const el_open_options& options)
    : model(std::move(opened)),
      int8(options.activations == EL_ACTIVATIONS_INT8),
      kernels(chosen(options.kernels)),
      prologue(compile(*model, model->header().prologue, Role::prologue, int8, *kernels)),
      epilogue(compile(*model, model->header().epilogue, Role::epilogue, int8, *kernels)),
      head(compile(*model, model->header().head, Role::head, int8, *kernels)),
      turns(*model) {
  const file::Header& h = model->header();
  if (h.deeper != file::NONE && h.deeper >= model->schedule.count)
    fail(EL_FORMAT, "deeper depths are as %u of %zu", h.deeper, model->schedule.count);
  std::vector<std::pair<uint32_t, Role>> known;
  for (const file::Depth& depth : model->schedule) {
    block_at.push_back(add_block(depth.block, Role::block, known));
    fill_at.push_back(depth.fill == file::NONE ? file::NONE : add_block(depth.fill, Role::fill, known));
  }
  const auto &given = epilogue.program.outputs, &sizes = epilogue.program.sizes;
  bool fits = given.size() == head.program.inputs;
  for (size_t i = 0; fits && i < given.size(); i++) fits = sizes[given[i]] == head.program.sizes[i];
  if (!fits) fail(EL_FORMAT, "the head takes something else than the epilogue gives");
  app = std::make_unique<context::App>(*this);
  std::vector<int> cpus;
  team = std::make_unique<Team>(team_options(options, cpus));
}

el_model::~el_model() = default;

uint32_t el_model::add_block(uint32_t stage, Role role, std::vector<std::pair<uint32_t, Role>>& known) {
  const auto found = std::find(known.begin(), known.end(), std::pair(stage, role));
  const uint32_t number = uint32_t(found - known.begin());
  if (found == known.end()) {
    if (known.size() >= MOST_BLOCKS) fail(EL_FORMAT, "more than %zu different blocks", MOST_BLOCKS);
    known.emplace_back(stage, role);
    blocks.push_back(compile(*model, stage, role, int8, *kernels));
  }
  return number;
}

const Compiled& el_model::at_depth(uint32_t depth, bool fill) const {
  const file::Header& h = model->header();
  const bool known = depth < depths();
  if (!known && (!any_depth() || depth >= file::MAX_DEPTHS))
    fail(EL_USAGE, "depth %u, and the loop runs %u times", depth, depths());
  const uint32_t number = (fill ? fill_at : block_at)[known ? depth : h.deeper];
  if (number == file::NONE)
    fail(EL_USAGE, "this model cannot fill in K and V of skipped depths; choose another policy for them");
  return blocks[number];
}

el_session::el_session(el_model& model, const el_session_options& options)
    : model(model), caches(*model.model, options.sequences, options.capacity, slots_of(model, options),
        el_kv(options.kv)) {}
