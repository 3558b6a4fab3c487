// The smallest host of a bundle's .pte: token ids in, greedy token ids out, through the depth loop, on C++ alone.
//
//     executorch-run BUNDLE COUNT ID…            the next COUNT tokens, each after all depths
//     EDGELOOP_DEPTHS=2 executorch-run …         the same with an exit after 2 depths
//
// It is what an Android app's JNI starts from: runtime/engines/executorch/bridge.cpp below, this loop above. Models with K and V for
// each depth, without a sliding window and without a router, that need nothing which layout.json has as "beyond": all
// others are refused by name, as is a layout.json whose weights are of another export. A prompt is read token by token.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" {
void* edgeloop_open(const char*, const char**, int, int, char*, int);
void* edgeloop_method(void*, const char*, int*, int*, char*, int);
int edgeloop_sizes(void*, int, int, int32_t*);
void* edgeloop_plan(void*, void*, int, void**, const int32_t*, const int32_t*, int, void**, const int64_t*, int, float**,
                    int, int, const float**, int, int, int);
int edgeloop_run(void*, int, const int32_t*, char*, int);
}

namespace {

constexpr int kFormat = 4;  // of manifest.json, as runtime/bundle/manifest.py has it
constexpr size_t kEnds = 4096;  // as runtime/engines/executorch/layout.py has it
char message[512];

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read; give the folder of a bundle");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The value behind "key": at or after `from`. The files are ours, and their keys are unique where this is used.
std::string value(const std::string& json, const std::string& key, size_t from = 0) {
  size_t at = json.find("\"" + key + "\":", from);
  if (at == std::string::npos) throw std::runtime_error("no " + key + " in the bundle; export it again");
  at = json.find_first_not_of(" \"", at + key.size() + 3);
  return json.substr(at, json.find_first_of(",\"\n}", at) - at);
}

// The strings of the list behind "key":.
std::vector<std::string> values(const std::string& json, const std::string& key) {
  std::vector<std::string> found;
  size_t at = json.find("\"" + key + "\":"), end = json.find(']', at);
  if (at == std::string::npos || end == std::string::npos) return found;
  for (at = json.find('[', at); (at = json.find('"', at + 1)) < end; at = json.find('"', at + 1))
    found.push_back(json.substr(at + 1, json.find('"', at + 1) - at - 1));
  return found;
}

// Sizes of the model, as layout.json has them.
struct Model {
  int width, vocabulary, kv_heads, head_dim, context, depths, turned;
  bool pairs;  // do neighbours turn against each other, or halves?
  double theta;
  float scale;  // of the embedding
  explicit Model(const std::string& layout) {
    auto number = [&](const char* key) { return std::atoi(value(layout, key).c_str()); };
    width = number("width");
    vocabulary = number("vocab_size");
    kv_heads = number("kv_heads");
    head_dim = number("head_dim");
    context = number("context_length");
    depths = number("depths");
    theta = std::atof(value(layout, "rope_theta").c_str());
    turned = number("rope_dims") ? number("rope_dims") : head_dim;
    pairs = value(layout, "rope_pairs") == "true";
    scale = float(std::atof(value(layout, "embedding_scale").c_str()));
  }
};

// An exception that names what this loop would run wrongly.
void check(const std::string& manifest, const std::string& layout) {
  const std::string format = value(manifest, "format");
  if (format != std::to_string(kFormat))
    throw std::runtime_error("bundle format " + format + ", this runner reads format " + std::to_string(kFormat) +
                             "; export the checkpoint again");
  const struct { bool there; const char* what; } rules[] = {
      {value(layout, "routed") != "false", "a router, which decides how deep each token goes"},
      {value(layout, "shared_kv") != "false", "K/V that all depths share"},
      {value(layout, "window") != "null", "a sliding window"},
  };
  for (const std::string& what : values(layout, "beyond"))
    throw std::runtime_error("the model has " + what + ", and this runner knows none; use edgeloop run");
  for (const auto& rule : rules)
    if (rule.there)
      throw std::runtime_error(std::string("the model has ") + rule.what + ", and this runner knows none; use edgeloop run");
}

// CRC-32 as zlib has it.
uint32_t crc32(const char* data, size_t size, uint32_t crc) {
  crc = ~crc;
  for (size_t i = 0; i < size; ++i) {
    crc ^= uint8_t(data[i]);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

// Rows of the embedding, in the file and at the places that layout.json names.
struct Embedding {
  std::string data, kind;
  size_t values, scales, groups;
  bool half;
  Embedding(const std::string& folder, const std::string& layout, size_t vocabulary, size_t width) {
    data = read(folder + "/" + value(layout, "file"));
    kind = value(layout, "kind");
    half = value(layout, "scale_type") == "bfloat16";
    values = std::strtoull(value(layout, "values").c_str(), nullptr, 10);
    scales = std::strtoull(value(layout, "scales").c_str(), nullptr, 10);
    groups = std::strtoull(value(layout, "groups").c_str(), nullptr, 10);
    const bool plain = kind == "float32";
    if (!plain && (groups == 0 || groups > width)) throw std::runtime_error("layout.json has no groups; copy the bundle again");
    const size_t bytes = vocabulary * (plain ? 4 * width : kind == "int4" ? width / 2 : width);
    const size_t scale_bytes = plain ? 0 : vocabulary * groups * (half ? 2 : 4);
    uint32_t crc = ends(values, bytes, 0);
    if (!plain) crc = ends(scales, scale_bytes, crc);
    if (std::to_string(crc) != value(layout, "check"))
      throw std::runtime_error(value(layout, "file") + ": the embedding is not where layout.json has it; they come from two "
                               "exports, copy the bundle again");
  }
  // The checksum of the first and last bytes of a part, which must be in the file.
  uint32_t ends(size_t start, size_t size, uint32_t crc) const {
    if (start > data.size() || size > data.size() - start)
      throw std::runtime_error("the file of the embedding ends too early; copy the bundle again");
    const size_t part = size < kEnds ? size : kEnds;
    return crc32(data.data() + start + size - part, part, crc32(data.data() + start, part, crc));
  }
  void row(int id, int width, float factor, float* out) const {
    stored(id, width, out);
    for (int i = 0; i < width; ++i) out[i] *= factor;
  }
  void stored(int id, int width, float* out) const {
    const char* base = data.data() + values;
    if (kind == "float32") {
      std::memcpy(out, base + size_t(id) * width * 4, size_t(width) * 4);
      return;
    }
    for (int i = 0; i < width; ++i) {
      size_t group = size_t(id) * groups + size_t(i) / (width / groups);
      float scale;
      uint32_t bits = 0;
      if (half) std::memcpy(reinterpret_cast<char*>(&bits) + 2, data.data() + scales + 2 * group, 2);
      else std::memcpy(&bits, data.data() + scales + 4 * group, 4);
      std::memcpy(&scale, &bits, 4);
      int code = kind == "int4" ? ((uint8_t(base[size_t(id) * width / 2 + i / 2]) >> (i % 2 * 4)) & 15) - 8
                                : int(int8_t(base[size_t(id) * width + i]));
      out[i] = code * scale;
    }
  }
};

// One m1 method on the caches of one depth. Inputs as in export/targets/executorch/methods.py.
struct Step {
  std::vector<float> depth, cos, sin, mask;
  std::vector<std::vector<float>> caches, fresh;
  void* plan = nullptr;
  Step(void* program, const Model& m, const std::string& name, float* state, float* out, int which, int capacity) {
    int inputs, outputs;
    void* method = edgeloop_method(program, name.c_str(), &inputs, &outputs, message, sizeof message);
    if (!method) throw std::runtime_error(message);
    const int layers = (outputs - 1) / 2, masks = layers ? 1 : 0;
    // What else it takes: one-hot depths, cos and sin, or all three.
    const int more = inputs - 1 - masks - 2 * layers;
    const bool has_depth = more == 1 || more == 3, turns = more > 1;
    cos.resize(m.turned), sin.resize(m.turned), mask.resize(1 + capacity);
    depth.assign(m.depths, 0.f);
    depth[which] = 1.f;
    caches.assign(2 * layers, std::vector<float>(size_t(m.kv_heads) * capacity * m.head_dim));
    fresh.assign(2 * layers, std::vector<float>(size_t(m.kv_heads) * m.head_dim));
    std::vector<void*> in, result{out};
    std::vector<int32_t> ranks, sizes;
    std::vector<int64_t> bytes{int64_t(m.width) * 4};
    std::vector<float*> slots;
    std::vector<const float*> rows;
    auto add = [&](void* data, std::vector<int32_t> shape) {
      in.push_back(data), ranks.push_back(int32_t(shape.size()));
      sizes.insert(sizes.end(), shape.begin(), shape.end());
    };
    add(state, {1, m.width});
    if (has_depth) add(depth.data(), {1, m.depths});
    if (turns) add(cos.data(), {1, 1, m.turned}), add(sin.data(), {1, 1, m.turned});
    if (masks) add(mask.data(), {1, 1, 1 + capacity});
    for (int i = 0; i < 2 * layers; ++i) {
      add(caches[i].data(), {m.kv_heads, capacity, m.head_dim});
      slots.push_back(caches[i].data()), rows.push_back(fresh[i].data()), result.push_back(fresh[i].data());
      bytes.push_back(int64_t(fresh[i].size()) * 4);
    }
    if (int(in.size()) != inputs) throw std::runtime_error(name + " is not what this runner knows; export again");
    plan = edgeloop_plan(program, method, inputs, in.data(), ranks.data(), sizes.data(), outputs, result.data(),
                         bytes.data(), 2 * layers, slots.data(), 1, 2 * layers, rows.data(), m.kv_heads, capacity,
                         m.head_dim);
  }
  void run(const Model& m, int position) {
    const int half = m.turned / 2;
    for (int i = 0; i < half; ++i) {
      const double angle = position * std::pow(m.theta, -2.0 * i / m.turned);
      const int one = m.pairs ? 2 * i : i, other = m.pairs ? one + 1 : half + i;
      cos[one] = cos[other] = float(std::cos(angle));
      sin[other] = float(std::sin(angle));
      sin[one] = -sin[other];
    }
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = int(i) <= position ? 0.f : -1e9f;  // the new row, then the cache
    int32_t at = position;
    if (edgeloop_run(plan, 1, &at, message, sizeof message)) throw std::runtime_error(message);
  }
};

bool has(void* program, const char* name) {
  int inputs, outputs;
  return edgeloop_method(program, name, &inputs, &outputs, message, sizeof message) != nullptr;
}

int generate(const std::string& bundle, int count, const std::vector<int>& prompt) {
  const std::string folder = bundle + "/executorch";
  const std::string manifest = read(bundle + "/manifest.json"), layout = read(folder + "/layout.json");
  check(manifest, layout);
  const Model m(layout);
  const Embedding embedding(folder, layout, m.vocabulary, m.width);
  const int total = int(prompt.size()) + count;
  if (prompt.empty() || count < 1 || total > m.context) throw std::runtime_error("too few or too many tokens");
  for (int id : prompt)
    if (id < 0 || id >= m.vocabulary) throw std::runtime_error("token " + std::to_string(id) + " is not in the vocabulary");
  const char* wanted = std::getenv("EDGELOOP_DEPTHS");
  const int depths = wanted ? std::atoi(wanted) : m.depths;
  if (depths < 1 || depths > m.depths) throw std::runtime_error("the model has " + std::to_string(m.depths) + " depths");
  std::vector<std::string> data;  // weights beside the program
  for (const std::string& name : values(layout, "data")) data.push_back(folder + "/" + name);
  std::vector<const char*> paths;
  for (const std::string& path : data) paths.push_back(path.c_str());
  void* program = edgeloop_open((folder + "/" + value(layout, "program")).c_str(), paths.data(), int(paths.size()), 0,
                                message, sizeof message);
  if (!program) throw std::runtime_error(message);

  std::vector<float> x(m.width), y(m.width), logits(m.vocabulary);
  const int capacity = total < 2 ? 2 : total;
  std::vector<Step> steps;  // a token's way: every step reads x and writes y
  steps.reserve(m.depths + 2);
  auto add = [&](const char* name, int depth) { steps.emplace_back(program, m, name, x.data(), y.data(), depth, capacity); };
  if (has(program, "prologue_m1")) add("prologue_m1", 0);
  for (int depth = 0; depth < depths; ++depth) add("block_m1", depth);
  if (has(program, "epilogue_m1")) add("epilogue_m1", 0);
  int inputs, outputs;
  void* method = edgeloop_method(program, "head_m1", &inputs, &outputs, message, sizeof message);
  if (!method) throw std::runtime_error(message);
  void *in[] = {x.data()}, *out[] = {logits.data()};
  const int32_t rank[] = {2}, sizes[] = {1, m.width};
  const int64_t bytes[] = {int64_t(m.vocabulary) * 4};
  void* head = edgeloop_plan(program, method, 1, in, rank, sizes, 1, out, bytes, 0, nullptr, 1, 0, nullptr, 0, 0, 0);

  int token = prompt[0];
  for (int position = 0; position < total - 1; ++position) {
    embedding.row(token, m.width, m.scale, x.data());
    for (Step& step : steps) {
      step.run(m, position);
      x = y;  // same size: the memory stays where it is
    }
    if (position + 1 < int(prompt.size())) {
      token = prompt[position + 1];
      continue;
    }
    int32_t nowhere = 0;
    if (edgeloop_run(head, 0, &nowhere, message, sizeof message)) throw std::runtime_error(message);
    token = 0;
    for (int id = 1; id < m.vocabulary; ++id)
      if (logits[id] > logits[token]) token = id;
    std::printf("%d\n", token);
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  if (count < 4) {
    std::fprintf(stderr, "executorch-run: wanted BUNDLE COUNT ID…, the ids of the prompt's tokens\n");
    return 2;
  }
  try {
    std::vector<int> prompt;
    for (int i = 3; i < count; ++i) prompt.push_back(std::atoi(words[i]));
    return generate(words[1], std::atoi(words[2]), prompt);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "executorch-run: %s\n", error.what());
    return 1;
  }
}
