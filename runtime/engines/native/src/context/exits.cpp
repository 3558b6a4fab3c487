#include "exits.h"

#include <cmath>
#include <cstdlib>

namespace edgeloop::context {

namespace {

constexpr float NEVER = 1e30f;  // the threshold of a depth after which no token leaves
const char* const SKIPPED[] = {"none", "exact", "propagate", "latest", "skip"};

struct Measure {
  const char* name;
  el_rule rule;
  double least, most;
};
constexpr Measure MEASURES[] = {{"latent", EL_RULE_LATENT, 0, HUGE_VAL}, {"gate", EL_RULE_GATE, 0, 1}, {"probe", EL_RULE_PROBE, 0, 1}};

// A number that a person wrote; NaN for what is none.
double number_of(const std::string& text) {
  if (text.empty() || text.find_first_not_of("+-.0123456789eE") != std::string::npos) return NAN;
  char* end = nullptr;
  const double x = std::strtod(text.c_str(), &end);
  return *end ? NAN : x;
}

std::vector<float> thresholds_of(const std::string& text, const std::string& rest, const Measure& measure, uint32_t depths) {
  std::vector<float> found;
  for (size_t at = 0; at <= rest.size();) {
    const size_t comma = std::min(rest.find(',', at), rest.size());
    const double x = number_of(rest.substr(at, comma - at));
    if (!((x >= measure.least && x <= measure.most) || std::fabs(x) >= double(NEVER)))
      fail(EL_USAGE, "exit rule %.60s: a threshold is a number from %g to %g", text.c_str(), measure.least, measure.most);
    found.push_back(float(x));
    at = comma + 1;
  }
  if (found.size() == 1) found.assign(depths - 1, found[0]);
  if (found.size() + 1 != depths)
    fail(EL_USAGE, "exit rule %.60s: %zu thresholds, wanted 1 or %u, one for each depth but the last", text.c_str(),
        found.size(), depths - 1);
  return found;
}

// N of `depth:N`; throws.
uint32_t depth_of(const std::string& text, const std::string& rest, uint32_t depths) {
  const double n = number_of(rest);
  if (!(n >= 1 && n <= depths && n == std::floor(n)) || rest.find_first_not_of("0123456789") != std::string::npos)
    fail(EL_USAGE, "exit rule %.60s: wanted depth:1 to depth:%u, the depths of this model", text.c_str(), depths);
  return uint32_t(n);
}

const float* numbers(const Exits& exits, const char* name) {
  const Head* found = exits.head(name);
  return found ? found->numbers.data() : nullptr;
}

void choose_router(ChosenPolicy& chosen, const Exits& exits, const std::string& name, const std::string& rest) {
  if (!exits.head("router.weight") || (exits.routing == EL_RULE_TOKEN && !exits.head("router.bias")))
    fail(EL_USAGE, "the file has no weights of the model's router; export the model again");
  el_policy& policy = chosen.policy;
  policy.rule = exits.routing;
  policy.squash = exits.squash, policy.gated = exits.gated, policy.temperature = exits.temperature, policy.alpha = exits.alpha;
  float threshold = exits.half_way;
  if (name == "never" && chosen.exit == name) {
    policy.everyone = 1;
  } else if (name == "depth") {
    policy.stop = depth_of(chosen.exit, rest, exits.depths);
  } else if (name == "router" && chosen.exit != name && exits.routing == EL_RULE_EXPERT) {
    const double x = number_of(rest), least = exits.squash == EL_SQUASH_TANH ? -1 : 0;
    if (!(x >= least && x <= 1)) fail(EL_USAGE, "exit rule %.60s: the router's threshold lies between %g and 1", chosen.exit.c_str(), least);
    threshold = float(x);
  } else if (chosen.exit != "router") {
    fail(EL_USAGE, "exit rule %.60s: a router decides in this model; wanted router, router:X, never or depth:N", chosen.exit.c_str());
  }
  chosen.thresholds = {threshold};
  const Head* hidden = exits.head("router.hidden");
  policy.hidden_count = hidden ? hidden->sizes[0] : 0;
  policy.hidden_width = hidden ? hidden->sizes[1] : 0;
  policy.hidden = numbers(exits, "router.hidden");
  policy.weight = numbers(exits, "router.weight");
  policy.bias = numbers(exits, "router.bias");
  policy.auxiliary = numbers(exits, "auxiliary.weight");
  policy.auxiliary_hidden = numbers(exits, "auxiliary.hidden");
  const Head* other = exits.head("auxiliary.hidden");
  if (exits.auxiliary && (!policy.auxiliary || !hidden != !other || (hidden && hidden->sizes != other->sizes)))
    fail(EL_USAGE, "the model's two routers are of different shapes, which this decoder does not run");
  if (exits.routing == EL_RULE_EXPERT) policy.capacity = exits.capacity.data();
}

void choose_measure(ChosenPolicy& chosen, const Exits& exits, const std::string& name, const std::string& rest, uint32_t& skipped) {
  const Measure* measure = nullptr;
  for (const Measure& each : MEASURES)
    if (name == each.name) measure = &each;
  if (!measure) {
    const bool routed = name == "router" || name == "chunk-topk";
    fail(EL_USAGE, "exit rule %.60s: %s; known: never, depth:N, latent:X, gate:X, probe:X", chosen.exit.c_str(),
        routed ? "the model has no router" : "there is none that runs without logits of every depth");
  }
  el_policy& policy = chosen.policy;
  policy.rule = measure->rule;
  if (measure->rule != EL_RULE_LATENT) {
    policy.weight = numbers(exits, (name + ".weight").c_str());
    policy.bias = numbers(exits, (name + ".bias").c_str());
    if (!policy.weight || !policy.bias) fail(EL_USAGE, "exit rule %.60s: the model has no %s", chosen.exit.c_str(), name.c_str());
  }
  for (const Calibrated& known : exits.calibrated) {
    if (known.name != chosen.exit) continue;
    chosen.thresholds = known.thresholds;
    skipped = known.skipped;
  }
  if (chosen.exit == name && chosen.thresholds.empty())
    fail(EL_USAGE, "exit rule %.60s has no threshold; give one (%s:X), or let `edgeloop calibrate` find them", chosen.exit.c_str(),
        name.c_str());
  if (chosen.exit != name) chosen.thresholds = thresholds_of(chosen.exit, rest, *measure, exits.depths);
}

// What becomes of K and V of skipped depths, of a model with a slot a depth and no router.
uint32_t skipped_of(const el_model& model, const char* name, uint32_t depths) {
  uint32_t found = 0;
  for (uint32_t i = EL_SKIPPED_EXACT; i <= EL_SKIPPED_SKIP; i++)
    if (!std::strcmp(name, SKIPPED[i])) found = i;
  if (!found) fail(EL_USAGE, "skipped K and V %.40s; known: exact, propagate, latest, skip", name);
  const file::Header& header = model.model->header();
  const file::Range caches = header.caches[file::BLOCK];
  bool window = false;
  for (uint32_t i = 0; i < caches.count; i++) window |= model.model->caches[caches.first + i].window > 0;
  const bool fills = found == EL_SKIPPED_PROPAGATE, copies = found == EL_SKIPPED_LATEST;
  if ((fills || copies) && (depths == 1 || window))
    fail(EL_USAGE, "skipped K and V %s: not with %s; choose exact or skip", name, depths == 1 ? "one depth" : "a sliding window");
  if (fills && (header.kept[file::BLOCK].count || !caches.count))
    fail(EL_USAGE, "skipped K and V propagate: not in this model; choose exact or skip");
  return found;
}

}  // namespace

Exits::Exits(const el_model& model) : depths(model.depths()) {}

Exits::Exits(const el_model& model, Record record) {
  const uint32_t width = model.model->carries.count ? model.model->carries[0] : 0;
  depths = record.number(file::MAX_DEPTHS);
  if (depths != model.depths() || record.number() != width) record.wrong();
  routing = record.number(EL_RULE_TOKEN);
  if (routing && routing < EL_RULE_EXPERT) record.wrong();
  squash = record.number(EL_SQUASH_SOFTMAX), gated = record.number(1), auxiliary = record.number(1);
  float values[3];
  record.floats(values, 3);
  temperature = values[0], alpha = values[1], half_way = values[2];
  capacity.resize(routing == EL_RULE_EXPERT ? depths : 0);
  record.floats(capacity.data(), capacity.size());
  calibrated.resize(record.number(64));
  for (Calibrated& rule : calibrated) {
    rule.name = record.text();
    rule.skipped = record.number(EL_SKIPPED_SKIP);
    rule.thresholds.resize(depths - 1);
    record.floats(rule.thresholds.data(), rule.thresholds.size());
  }
  heads.resize(record.number(16));
  for (Head& each : heads) {
    each.name = record.text();
    each.sizes.resize(record.number(3));
    uint64_t count = 1;
    for (uint32_t& size : each.sizes) {
      size = record.number(uint32_t(record.left() / 4));
      if (!size || (count *= size) > record.left() / 4) record.wrong();
    }
    each.numbers.resize(count);
    record.floats(each.numbers.data(), count);
  }
  record.finish();
  // The shapes that a decoder reads, whatever the names of the others.
  const auto shaped = [&](const char* name, std::vector<uint32_t> sizes) {
    const Head* found = head(name);
    if (found && found->sizes != sizes) record.wrong();
  };
  shaped("gate.weight", {width}), shaped("gate.bias", {1});
  shaped("probe.weight", {depths - 1, width}), shaped("probe.bias", {depths - 1});
  shaped("router.bias", {depths});
  for (const char* name : {"router", "auxiliary"}) {
    const Head* hidden = head((std::string(name) + ".hidden").c_str());
    if (hidden && (hidden->sizes.size() != 3 || hidden->sizes[2] != width)) record.wrong();
    shaped((std::string(name) + ".weight").c_str(), {depths, hidden ? hidden->sizes[1] : width});
  }
}

const Head* Exits::head(const char* name) const {
  for (const Head& each : heads)
    if (each.name == name) return &each;
  return nullptr;
}

std::unique_ptr<ChosenPolicy> choose_policy(const el_model& model, const Exits& exits, const char* exit, const char* skipped) {
  auto chosen = std::make_unique<ChosenPolicy>();
  const bool shared = model.model->header().shares_kv;
  chosen->exit = exit ? exit : exits.routing ? "router" : "never";
  chosen->kv = shared ? "shared" : "per-depth";
  el_policy& policy = chosen->policy = {};
  policy.struct_bytes = sizeof policy;
  policy.depths = policy.stop = exits.depths;
  policy.shared = shared;
  policy.temperature = policy.alpha = 1;
  const size_t colon = chosen->exit.find(':');
  const std::string name = chosen->exit.substr(0, colon), rest = colon == std::string::npos ? "" : chosen->exit.substr(colon + 1);
  uint32_t found = EL_SKIPPED_EXACT;
  if (exits.routing) {
    choose_router(*chosen, exits, name, rest);
    found = EL_SKIPPED_SKIP;
    if (skipped && !shared && std::strcmp(skipped, "skip"))
      fail(EL_USAGE, "skipped K and V %.40s: the model's router was trained with depths that do not see those that left; leave it out", skipped);
  } else if (name == "never" && chosen->exit == name) {
    policy.rule = EL_RULE_NEVER;
  } else if (name == "depth") {
    policy.rule = EL_RULE_DEPTH;
    policy.stop = depth_of(chosen->exit, rest, exits.depths);
  } else {
    choose_measure(*chosen, exits, name, rest, found);
  }
  if (shared && skipped && std::strcmp(skipped, "shared"))
    fail(EL_USAGE, "skipped K and V %.40s: depths share K and V, so that none are missing; leave it out", skipped);
  if (!shared && !exits.routing && skipped) found = skipped_of(model, skipped, exits.depths);
  chosen->skipped = shared ? "shared" : SKIPPED[found];
  policy.skipped = shared || policy.rule == EL_RULE_NEVER ? uint32_t(EL_SKIPPED_NONE) : found;
  policy.thresholds = chosen->thresholds.data();
  return chosen;
}

}  // namespace edgeloop::context
