// Calls of methods on memory that stays where it is. Inputs and outputs as in export/targets/executorch/methods.py, how a
// prompt is cut as in runtime/engines/executorch/calls.py, how caches grow as GrowingPairs in runtime/engines/kv.py.
#include "loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" {
void* edgeloop_open(const char*, const char**, int, int, char*, int);
void edgeloop_close(void*);
void* edgeloop_method(void*, const char*, int*, int*, char*, int);
int edgeloop_sizes(void*, int, int, int32_t*);
void* edgeloop_plan(void*, void*, int, void**, const int32_t*, const int32_t*, int, void**, const int64_t*, int, float**,
                    int, int, const float**, int, int, int);
void edgeloop_free(void*);
int edgeloop_run(void*, int, const int32_t*, char*, int);
}

namespace edgeloop::pte {

namespace {

constexpr float MASKED = -1e9f;
constexpr int STEP = 64;    // rows by which caches grow at least
constexpr int SINGLES = 4;  // tokens for each row of the largest mN method that go one by one: a chunk computes all its rows

char message[512];

struct Method {
  void* handle = nullptr;  // null: there is none
  int inputs = 0, outputs = 0;
};

Method method_of(void* program, const std::string& name, bool wanted) {
  Method found;
  found.handle = edgeloop_method(program, name.c_str(), &found.inputs, &found.outputs, message, sizeof message);
  // Of what need not be there, a method that does not load is an error all the same.
  if (!found.handle && (wanted || std::string(message).find("it has no method") == std::string::npos)) throw Problem(message);
  return found;
}

// Memory that the system gives when it is first written.
using Zeros = std::unique_ptr<float, void (*)(void*)>;
Zeros zeros(size_t count) {
  Zeros found(static_cast<float*>(std::calloc(count ? count : 1, sizeof(float))), std::free);
  if (!found) throw std::bad_alloc();
  return found;
}

uint64_t now() {
  return uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

}  // namespace

struct Loop::Rows {
  Rows(const Sizes& s, int rows, bool chunk)
      : rows(rows), chunk(chunk), state(size_t(rows) * s.width), out(state.size()), depth(size_t(rows) * s.depths),
        cos(size_t(rows) * s.turned), sin(cos.size()), at(rows) {}
  const int rows;
  const bool chunk;  // the rows are of one sequence: method …_prefill, else …_m1
  std::vector<float> state, out, depth, cos, sin, mask;
  std::vector<int32_t> at;  // rows of the caches
  std::string method(const std::string& kind) const { return kind + (chunk ? "_prefill" : "_m1"); }
};

struct Loop::Stage {
  Stage(void* program, const Sizes& s, const std::string& kind, int depth) : kind(kind), depth(depth) {
    spent.stage = kind, spent.depth = kind == "block" ? depth + 1 : 0;
    methods[0] = method_of(program, kind + "_m1", true);
    for (int i = 1; i < methods[0].outputs; ++i) {
      caches.push_back(zeros(size_t(s.kv_heads) * std::max(s.context, 2) * s.head_dim));
      fresh.push_back(zeros(size_t(s.kv_heads) * s.chunk * s.head_dim));  // of both methods: neither moves it
    }
  }
  std::string kind;
  int depth;
  Method methods[2];    // of one row; of a chunk, loaded when it is first used
  void* plans[2] = {};  // null: the caches moved, or none was made yet
  std::vector<Zeros> caches, fresh;  // layer by layer K and V: [kv_heads, rows, head_dim]; new rows [M, kv_heads, head_dim]
  Spent spent;
};

Loop::Loop(const Bundle& bundle, int depths, int threads)
    : bundle_(bundle), sizes_(bundle.sizes()), depths_(depths ? depths : sizes_.depths), logits_(size_t(sizes_.vocabulary)) {
  if (depths_ < 1 || depths_ > sizes_.depths)
    throw Problem(2, "depths " + std::to_string(depths) + ", and the model has " + std::to_string(sizes_.depths));
  std::vector<const char*> data;
  for (const std::string& path : bundle.data()) data.push_back(path.c_str());
  program_ = edgeloop_open(bundle.program().c_str(), data.data(), int(data.size()), threads, message, sizeof message);
  if (!program_) throw Problem(message);
  try {
    one_ = std::make_unique<Rows>(sizes_, 1, false), chunk_ = std::make_unique<Rows>(sizes_, sizes_.chunk, true);
    const auto add = [&](const char* kind, int depth) {
      if (depth || std::string(kind) == "block" || method_of(program_, std::string(kind) + "_m1", false).handle)
        stages_.push_back(std::make_unique<Stage>(program_, sizes_, kind, depth));
    };
    add("prologue", 0);
    for (int depth = 0; depth < sizes_.depths; ++depth) add("block", depth);
    add("epilogue", 0);
    head_ = std::make_unique<Stage>(program_, sizes_, "head", 0);
    int32_t found[8] = {};
    if (!head_->methods[0].handle || edgeloop_sizes(head_->methods[0].handle, 1, 0, found) != 2 || found[1] != sizes_.vocabulary)
      throw Problem("the program's head has other sizes than layout.json; it is from another bundle, copy the bundle again");
    reserve(1);
  } catch (...) {
    edgeloop_close(program_);
    throw;
  }
}

Loop::~Loop() { edgeloop_close(program_); }

void Loop::back(size_t tokens) { cached_ = std::min(cached_, int(tokens)); }

void Loop::check(const int64_t* ids, size_t count) const {
  if (!count) throw Problem("no tokens to go on from; give at least one");
  if (count > room())
    throw Problem(std::to_string(cached_ + count) + " tokens, and the model's context has " + std::to_string(sizes_.context));
  for (size_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= sizes_.vocabulary)
      throw Problem("token " + std::to_string(ids[i]) + " is not in the vocabulary of " + std::to_string(sizes_.vocabulary));
}

int64_t Loop::likeliest() const { return std::max_element(logits_.begin(), logits_.end()) - logits_.begin(); }

int64_t Loop::step(int64_t token) {
  check(&token, 1);
  pass(*one_, &token, 1, false, true);
  return likeliest();
}

int64_t Loop::prompt(const int64_t* ids, size_t count) {
  check(ids, count);
  Rows& rows = count > size_t(SINGLES) * size_t(std::min(sizes_.rows, sizes_.depths)) ? *chunk_ : *one_;
  for (size_t at = 0; at < count; at += size_t(rows.rows)) {
    const int part = int(std::min(count - at, size_t(rows.rows)));
    pass(rows, ids + at, part, true, at + size_t(part) == count);
    chunks_ += rows.chunk;
  }
  return likeliest();
}

// Tokens of one call through all stages; the head for the last of them, where it is `wanted`.
void Loop::pass(Rows& rows, const int64_t* ids, int count, bool prompt, bool wanted) {
  reserve(cached_ + count);
  for (int i = 0; i < count; ++i) bundle_.row(ids[i], rows.state.data() + size_t(i) * sizes_.width);
  show(rows, count);
  for (const auto& stage : stages_) {
    if (!prompt && stage->depth >= depths_) continue;
    run(*stage, rows, count, prompt);
    std::copy_n(rows.out.begin(), size_t(count) * sizes_.width, rows.state.begin());
  }
  cached_ += count;
  if (!wanted) return;
  std::copy_n(rows.state.begin() + ptrdiff_t(count - 1) * sizes_.width, sizes_.width, one_->state.begin());
  run(*head_, *one_, 0, prompt);
}

// A stage on `count` rows; their K and V go into its caches.
void Loop::run(Stage& stage, Rows& rows, int count, bool prompt) {
  const bool head = &stage == head_.get();
  if (stage.kind == "block" && sizes_.depths > 1) {
    std::fill(rows.depth.begin(), rows.depth.end(), 0.f);
    for (int i = 0; i < count; ++i) rows.depth[size_t(i) * sizes_.depths + stage.depth] = 1.f;
  }
  void*& plan = stage.plans[rows.chunk];
  if (!plan) {
    Method& method = stage.methods[rows.chunk];
    if (!method.handle) method = method_of(program_, rows.method(stage.kind), true);
    const int arrays = int(stage.caches.size()), masks = arrays ? 1 : 0, more = method.inputs - 1 - masks - arrays;
    std::vector<void*> in, out{head ? logits_.data() : rows.out.data()};
    std::vector<int32_t> ranks, shape;
    std::vector<int64_t> bytes{int64_t(head ? logits_.size() : rows.out.size()) * 4};
    std::vector<float*> slots;
    std::vector<const float*> made;
    const auto add = [&](void* data, std::vector<int32_t> size) {
      in.push_back(data), ranks.push_back(int32_t(size.size()));
      shape.insert(shape.end(), size.begin(), size.end());
    };
    add(rows.state.data(), {rows.rows, sizes_.width});
    // What else it takes: one-hot depths, cos and sin, or all three.
    if (more == 1 || more == 3) add(rows.depth.data(), {rows.rows, sizes_.depths});
    if (more > 1) add(rows.cos.data(), {rows.rows, 1, sizes_.turned}), add(rows.sin.data(), {rows.rows, 1, sizes_.turned});
    if (masks) add(rows.mask.data(), {1, rows.rows, rows.rows + laid_out_});
    for (int i = 0; i < arrays; ++i) {
      float *cache = stage.caches[size_t(i)].get(), *fresh = stage.fresh[size_t(i)].get();
      add(cache, {sizes_.kv_heads, laid_out_, sizes_.head_dim});
      slots.push_back(cache), made.push_back(fresh), out.push_back(fresh);
      bytes.push_back(int64_t(rows.rows) * sizes_.kv_heads * sizes_.head_dim * 4);
    }
    if (int(in.size()) != method.inputs || int(out.size()) != method.outputs || more < 0)
      throw Problem(rows.method(stage.kind) + " takes other inputs than this runner knows; export the checkpoint again");
    plan = edgeloop_plan(program_, method.handle, method.inputs, in.data(), ranks.data(), shape.data(), method.outputs,
                         out.data(), bytes.data(), arrays, slots.data(), 1, arrays, made.data(), sizes_.kv_heads, laid_out_,
                         sizes_.head_dim);
  }
  const uint64_t start = now();
  if (edgeloop_run(plan, count, rows.at.data(), message, sizeof message)) throw Problem(message);
  (prompt ? stage.spent.prompt_ns : stage.spent.token_ns) += now() - start;
  (prompt ? stage.spent.prompt_calls : stage.spent.token_calls)++;
}

// Caches have at least so many rows afterwards, and no more than are of use: methods read all of them.
void Loop::reserve(int rows) {
  if (rows <= laid_out_) return;
  int bits = 0;
  while (rows >> bits) ++bits;
  const int step = std::max(STEP, bits > 3 ? 1 << (bits - 3) : 1);  // long caches in longer steps
  const int before = laid_out_;
  laid_out_ = std::min((rows + step - 1) / step * step, std::max(sizes_.context, 2));
  for (const auto& stage : stages_) {
    for (auto& cache : stage->caches)
      for (int head = sizes_.kv_heads - 1; head > 0; --head) {  // upwards, so the last one first
        const float* from = cache.get() + size_t(head) * before * sizes_.head_dim;
        float* to = cache.get() + size_t(head) * laid_out_ * sizes_.head_dim;
        std::memmove(to, from, size_t(before) * sizes_.head_dim * sizeof(float));
      }
    for (void*& plan : stage->plans) {
      if (plan) edgeloop_free(plan);
      plan = nullptr;
    }
  }
  for (Rows* each : {one_.get(), chunk_.get()}) each->mask.resize(size_t(each->rows) * size_t(each->rows + laid_out_));
}

// Where the next `count` tokens are, and what they see: new rows up to their own, then the rows of the cache.
void Loop::show(Rows& rows, int count) const {
  const int half = sizes_.turned / 2, columns = rows.rows + laid_out_;
  std::fill(rows.mask.begin(), rows.mask.end(), MASKED);
  for (int i = 0; i < count; ++i) {
    rows.at[size_t(i)] = cached_ + i;
    float *cos = rows.cos.data() + size_t(i) * sizes_.turned, *sin = rows.sin.data() + size_t(i) * sizes_.turned;
    for (int d = 0; d < half; ++d) {
      const double angle = (cached_ + i) * std::pow(sizes_.theta, -2.0 * d / sizes_.turned);
      const int one = sizes_.pairs ? 2 * d : d, other = sizes_.pairs ? one + 1 : half + d;
      cos[one] = cos[other] = float(std::cos(angle));
      sin[other] = float(std::sin(angle)), sin[one] = -sin[other];
    }
    float* mask = rows.mask.data() + size_t(i) * columns;
    std::fill_n(mask, i + 1, 0.f), std::fill_n(mask + rows.rows, cached_, 0.f);
  }
}

std::vector<Spent> Loop::spent() const {
  std::vector<Spent> found;
  for (const auto& stage : stages_) found.push_back(stage->spent);
  found.push_back(head_->spent);
  return found;
}

void Loop::forget_spent() {
  for (const auto& stage : stages_) stage->spent.prompt_ns = stage->spent.prompt_calls = stage->spent.token_ns = stage->spent.token_calls = 0;
  head_->spent.prompt_ns = head_->spent.prompt_calls = head_->spent.token_ns = head_->spent.token_calls = 0;
}

}  // namespace edgeloop::pte
