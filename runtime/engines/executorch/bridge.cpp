// Loads a .pte with ExecuTorch's runtime and runs its methods on memory of the caller: a C interface over C++, without
// torch. runtime/engines/executorch/bridge.py compiles it against the headers and libraries of the executorch wheel; apps that have
// ExecuTorch in C++ can take it as it is.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#ifdef EDGELOOP_PROFILE
#include <executorch/devtools/etdump/etdump_flatcc.h>
#endif
#include <executorch/extension/module/module.h>
#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/core/exec_aten/exec_aten.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include "ptd.h"

// The wheel has the library of the thread pool, but not its header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
  size_t get_thread_count() const;
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace edgeloop {  // named, so that this library and the one with the tracer count together

// All programs of a process share one pool of threads, and each keeps the pool's address from the moment a method is
// loaded. So the pool gets another size only while no program has it; a program of one thread does without.
class PoolShare {
 public:
  // `threads`: 1 none of the pool, more a pool of as many, 0 as it is; negative: as many if nobody has it yet.
  bool take(int threads, std::string* reason) {
    if (threads == 1 || threads == -1) return true;
    std::lock_guard<std::mutex> lock(mutex());
    auto* pool = executorch::extension::threadpool::get_threadpool();
    const int wanted = threads < 0 ? -threads : threads, found = static_cast<int>(pool->get_thread_count());
    if (wanted && wanted != found) {
      if (!users()) {
        pool->_unsafe_reset_threadpool(wanted);
      } else if (threads > 0) {
        *reason = "it was opened with " + std::to_string(wanted) + " threads, and another open model of this process has " +
                  std::to_string(found) + ", which all of them share; close that one first, or open this one with " +
                  std::to_string(found) + " threads or with 1";
        return false;
      }
    }
    ++users();
    held_ = true;
    return true;
  }
  bool held() const { return held_; }
  ~PoolShare() {
    std::lock_guard<std::mutex> lock(mutex());
    if (held_) --users();
  }

 private:
  static std::mutex& mutex() { static std::mutex* it = new std::mutex; return *it; }
  static int& users() { static int count = 0; return count; }
  bool held_ = false;
};

}  // namespace edgeloop

namespace {

using edgeloop::PoolShare;
using executorch::extension::module::Module;
using executorch::extension::threadpool::NoThreadPoolGuard;
using executorch::runtime::BackendOptions;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Method;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;

// While it lives, XNNPACK runs on the calling thread alone unless the program has a share of the pool.
class Threads {
 public:
  explicit Threads(const PoolShare& pool) : before_(NoThreadPoolGuard::is_enabled()) {
    NoThreadPoolGuard::set_enabled(!pool.held());
  }
  ~Threads() { NoThreadPoolGuard::set_enabled(before_); }

 private:
  const bool before_;
};

struct Plan;

struct Program {
  PoolShare pool;  // first, so that it is given back last
#ifdef EDGELOOP_PROFILE
  std::unordered_map<std::string, executorch::etdump::ETDumpGen> tracers;  // of each method: an ETDump has no names
#endif
  std::unique_ptr<Module> module;
  std::unordered_map<Method*, const void*> bound;  // the plan whose inputs a method has now
  std::unordered_set<Plan*> plans;
  ~Program();
};

// One method on one set of addresses. What it says of caches is where new rows of K and V go.
struct Plan {
  Program* program;
  Method* method;
  std::vector<std::vector<TensorImpl::SizesType>> sizes;
  std::vector<std::vector<TensorImpl::DimOrderType>> orders;
  std::vector<std::unique_ptr<TensorImpl>> inputs;
  std::vector<void*> outputs;
  std::vector<size_t> output_bytes;
  std::vector<float*> caches;        // layer by layer key and value, of each lane in turn
  std::vector<const float*> fresh;   // layer by layer new key and value [M, K, hd]
  int lanes, kv_heads, capacity, head_dim;
};

Program::~Program() {
  for (Plan* plan : plans) delete plan;
}

int fail(char* message, int room, const std::string& what, Error error) {
  const char* advice = error == Error::InvalidExternalData ? "; its weights are of another export, copy the bundle again" : "";
  std::snprintf(message, room, "%s: %s%s", what.c_str(), executorch::runtime::to_string(error), advice);
  return -1;
}

float* cache_row(const Plan& plan, size_t i, int row, int head, int at) {
  size_t lane = plan.lanes == 1 ? 0 : row;
  float* cache = plan.caches[i * plan.lanes + lane];
  return cache + (static_cast<size_t>(head) * plan.capacity + at) * plan.head_dim;
}

}  // namespace

extern "C" {

// The program at `path` with `count` .ptd files `data`, mapped; methods share their weights in memory. `threads`: see
// PoolShare. A damaged program is refused where its tables show it; bytes of a delegate or of weights show nothing.
void* edgeloop_open(const char* path, const char** data, int count, int threads, char* message, int room) {
  // Errors come back as numbers; the runtime's own log says more than people can use, most of it about the processor.
  auto silent = [](et_timestamp_t, et_pal_log_level_t, const char*, const char*, size_t, const char*, size_t) {};
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(silent, "edgeloop"));
  executorch::runtime::runtime_init();
  const auto* backend = executorch::runtime::get_backend_class("XnnpackBackend");
  if (backend && !backend->is_available()) {
    std::snprintf(message, room, "XNNPACK does not start: it asks /proc/cpuinfo and /sys/devices/system/cpu for the processor; mount them");
    return nullptr;
  }
  BackendOptions<1> options;
  (void)options.set_option("weight_cache_enabled", true);
  Error error = executorch::runtime::set_option("XnnpackBackend", options.view());
  if (error != Error::Ok) {
    fail(message, room, "the XNNPACK library is missing", error);
    return nullptr;
  }
  auto program = std::make_unique<Program>();
  std::string reason;
  if (!program->pool.take(threads, &reason)) {
    std::snprintf(message, room, "%s", reason.c_str());
    return nullptr;
  }
  std::vector<std::string> files(data, data + count);
  for (const std::string& file : files) {
    reason = edgeloop::damage(file);
    if (reason.empty()) continue;
    std::snprintf(message, room, "%s: %s", file.substr(file.rfind('/') + 1).c_str(), reason.c_str());
    return nullptr;
  }
  program->module = count ? std::make_unique<Module>(path, files, Module::LoadMode::Mmap)
                          : std::make_unique<Module>(path, Module::LoadMode::Mmap);
  error = program->module->load(executorch::runtime::Program::Verification::InternalConsistency);
  if (error != Error::Ok) {
    fail(message, room, "it does not load", error);
    return nullptr;
  }
  // XNNPACK looks for weights in a map of names without asking whether there is one.
  if (!count && !program->module->program()->get_named_data_map().ok()) {
    std::snprintf(message, room, "its weights are in .ptd files, and layout.json names none; copy the bundle again");
    return nullptr;
  }
  return program.release();
}

// Lets go of the program, its packed weights and its plans.
void edgeloop_close(void* handle) { delete static_cast<Program*>(handle); }

// The method `name`, loaded; its numbers of inputs and outputs.
void* edgeloop_method(void* handle, const char* name, int* inputs, int* outputs, char* message, int room) {
  auto* program = static_cast<Program*>(handle);
  auto names = program->module->method_names();
  if (!names.ok() || !names->count(name)) {
    std::snprintf(message, room, "it has no method %s; it is from another bundle, copy the bundle again", name);
    return nullptr;
  }
  executorch::runtime::EventTracer* tracer = nullptr;
#ifdef EDGELOOP_PROFILE
  tracer = &program->tracers[name];
#endif
  Threads threads(program->pool);
  Error error = program->module->load_method(name, nullptr, tracer);
  if (error != Error::Ok) {
    fail(message, room, std::string("method ") + name + " does not load", error);
    return nullptr;
  }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  auto method = program->module->method(name);
#pragma GCC diagnostic pop
  if (!method.ok()) {
    fail(message, room, std::string("method ") + name, method.error());
    return nullptr;
  }
  *inputs = static_cast<int>((*method)->inputs_size());
  *outputs = static_cast<int>((*method)->outputs_size());
  return *method;
}

// Sizes of input `index` at the largest, or of output `index` (`output` 1); the number of them, at most 8.
int edgeloop_sizes(void* method, int output, int index, int32_t* sizes) {
  auto meta = static_cast<Method*>(method)->method_meta();
  auto info = output ? meta.output_tensor_meta(index) : meta.input_tensor_meta(index);
  if (!info.ok()) return -1;
  auto found = info->sizes();
  for (size_t i = 0; i < found.size() && i < 8; ++i) sizes[i] = found[i];
  return static_cast<int>(found.size());
}

// A plan: `ranks` and `sizes` of the inputs one after another, all float32.
void* edgeloop_plan(void* handle, void* method, int inputs, void** input, const int32_t* ranks, const int32_t* sizes,
                    int outputs, void** output, const int64_t* output_bytes, int caches, float** cache, int lanes,
                    int fresh, const float** new_rows, int kv_heads, int capacity, int head_dim) {
  auto plan = std::make_unique<Plan>();
  plan->program = static_cast<Program*>(handle);
  plan->method = static_cast<Method*>(method);
  plan->sizes.resize(inputs);
  plan->orders.resize(inputs);
  for (int i = 0; i < inputs; ++i) {
    for (int d = 0; d < ranks[i]; ++d) {
      plan->sizes[i].push_back(*sizes++);
      plan->orders[i].push_back(d);
    }
    plan->inputs.push_back(std::make_unique<TensorImpl>(ScalarType::Float, ranks[i], plan->sizes[i].data(), input[i],
                                                        plan->orders[i].data()));
  }
  plan->outputs.assign(output, output + outputs);
  plan->output_bytes.assign(output_bytes, output_bytes + outputs);
  plan->caches.assign(cache, cache + caches);
  plan->fresh.assign(new_rows, new_rows + fresh);
  plan->lanes = lanes;
  plan->kv_heads = kv_heads;
  plan->capacity = capacity;
  plan->head_dim = head_dim;
  plan->program->plans.insert(plan.get());
  return plan.release();
}

void edgeloop_free(void* handle) {
  auto* plan = static_cast<Plan*>(handle);
  auto bound = plan->program->bound.find(plan->method);
  if (bound != plan->program->bound.end() && bound->second == plan) plan->program->bound.erase(bound);
  plan->program->plans.erase(plan);
  delete plan;
}

// Runs the method; then K and V of its first `rows` rows go to rows at[…] of their lanes' caches.
int edgeloop_run(void* handle, int rows, const int32_t* at, char* message, int room) {
  auto* plan = static_cast<Plan*>(handle);
  auto& bound = plan->program->bound[plan->method];
  if (bound != plan) {
    for (size_t i = 0; i < plan->inputs.size(); ++i) {
      Error error = plan->method->set_input(EValue(Tensor(plan->inputs[i].get())), i);
      if (error != Error::Ok) return fail(message, room, "input " + std::to_string(i), error);
    }
    for (size_t i = 0; i < plan->outputs.size(); ++i) {
      Error error = plan->method->set_output_data_ptr(plan->outputs[i], plan->output_bytes[i], i);
      if (error != Error::Ok) return fail(message, room, "output " + std::to_string(i), error);
    }
    bound = plan;
  }
  Threads threads(plan->program->pool);
  Error error = plan->method->execute();
  if (error != Error::Ok) return fail(message, room, "execution", error);
  const size_t row = static_cast<size_t>(plan->head_dim) * sizeof(float);
  for (size_t i = 0; i < plan->fresh.size(); ++i)
    for (int r = 0; r < rows; ++r)
      for (int k = 0; k < plan->kv_heads; ++k)
        std::memcpy(cache_row(*plan, i, r, k, at[r]),
                    plan->fresh[i] + (static_cast<size_t>(r) * plan->kv_heads + k) * plan->head_dim, row);
  return 0;
}

#ifdef EDGELOOP_PROFILE
// Writes the times of all calls of the method `name` since it was loaded, or since the last time, to an ETDump.
int edgeloop_profile(void* handle, const char* name, const char* path) {
  executorch::etdump::ETDumpGen& tracer = static_cast<Program*>(handle)->tracers[name];
  executorch::etdump::ETDumpResult dump = tracer.get_etdump_data();
  std::FILE* file = std::fopen(path, "wb");
  bool written = file && std::fwrite(dump.buf, 1, dump.size, file) == dump.size;
  if (file && std::fclose(file)) written = false;
  std::free(dump.buf);
  tracer.reset();
  return written ? 0 : -1;
}
#endif

}  // extern "C"
