// Runs a model.lanes file with the library beside it: a prompt, then greedy steps, for each table of kernels that is named and each
// width of K and V: float32 with two threads, the others with one. A line for each: the ids that were chosen, and a hash of the bits of all logits. They are the same for
// every table, and on every computer. "best" is the table that the library chooses, and its line begins with that one's name:
// test_model TABLE,TABLE,... STEPS FILE ID ...
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "edgeloop.h"

namespace {

char error[EL_ERROR_SIZE];

void check(int code, const char* what) {
  if (code == EL_OK) return;
  printf("%s: %s\n", what, error);
  exit(1);
}

struct Hash {
  uint64_t value = 14695981039346656037u;  // FNV-1a, by words
  void add(const std::vector<float>& x) {
    for (float f : x) {
      uint32_t bits;
      memcpy(&bits, &f, 4);
      value = (value ^ (f == f ? bits : 0x7fc00000)) * 1099511628211u;  // any NaN is as good as another
    }
  }
};

// One new token of one lane.
struct Lane {
  int64_t depth = 0, position = 0;
  int32_t cached = 0, tokens = 1;
  el_lanes lanes{};

  Lane(uint32_t depth, uint32_t position, uint32_t slot) : depth(depth), position(position), cached(int32_t(position)) {
    lanes.struct_bytes = sizeof lanes, lanes.count = 1, lanes.stride = 1, lanes.first_slot = slot;
    lanes.depth = &this->depth, lanes.cached = &cached, lanes.tokens = &tokens, lanes.positions = &this->position;
  }
  Lane(const Lane&) = delete;
};

int64_t most_likely(const std::vector<float>& logits, const el_info& info) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); i++)
    if (logits[i] > logits[best]) best = i;
  return int64_t(best % info.vocab_size);
}

void prompt(el_session* session, const std::vector<int64_t>& ids, std::vector<float>& logits) {
  std::vector<int64_t> positions;
  for (size_t i = 0; i < ids.size(); i++) positions.push_back(int64_t(i));
  Lane all(0, 0, 0);
  all.tokens = int32_t(ids.size()), all.lanes.stride = uint32_t(ids.size()), all.lanes.positions = positions.data();
  check(el_prompt(session, &all.lanes, ids.data(), 0, logits.data(), error), "prompt");
}

void step(el_session* session, const el_info& info, int64_t id, uint32_t position, std::vector<float>& logits) {
  std::vector<float> state(info.width);
  const int64_t row = 0;
  Lane outside(0, position, 0);
  check(el_prologue(session, &outside.lanes, &id, nullptr, state.data(), error), "prologue");
  for (uint32_t depth = 0; depth < info.depths; depth++) {
    Lane lane(depth, position, info.shares_kv ? 0 : depth);
    check(el_block(session, &lane.lanes, state.data(), state.data(), error), "block");
  }
  check(el_epilogue(session, &outside.lanes, state.data(), &row, 1, logits.data(), error), "epilogue");
}

void run(const char* file, const char* kernels, uint32_t kv, uint32_t steps, const std::vector<int64_t>& ids) {
  el_open_options options{};
  // Two threads wait for each other some fifty times a token, which takes long where other programs want the processors.
  options.struct_bytes = sizeof options, options.threads = kv == EL_KV_F32 ? 2 : 1;
  options.kernels = strcmp(kernels, "best") == 0 ? nullptr : kernels;
  el_model* model = nullptr;
  check(el_open(file, &options, &model, error), "open");
  el_info info{};
  info.struct_bytes = sizeof info;
  check(el_model_info(model, &info, error), "info");
  el_session_options asked{};
  asked.struct_bytes = sizeof asked, asked.sequences = 1, asked.capacity = uint32_t(ids.size()) + steps, asked.kv = kv;
  el_session* session = nullptr;
  check(el_session_new(model, &asked, &session, error), "session");
  std::vector<float> logits(info.output);
  Hash hash;
  prompt(session, ids, logits);
  hash.add(logits);
  printf("%-8s kv %u:", info.kernels, kv);
  for (uint32_t i = 0; i < steps; i++) {
    const int64_t id = most_likely(logits, info);
    printf(" %lld", static_cast<long long>(id));
    step(session, info, id, uint32_t(ids.size()) + i, logits);
    hash.add(logits);
  }
  printf(" %016llx\n", static_cast<unsigned long long>(hash.value));
  el_session_free(session);
  el_close(model);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    fprintf(stderr, "usage: test_model TABLE,TABLE,... STEPS FILE ID ...\n");
    return 2;
  }
  std::vector<int64_t> ids;
  for (int i = 4; i < count; i++) ids.push_back(atoll(arguments[i]));
  for (char* name = strtok(arguments[1], ","); name; name = strtok(nullptr, ","))
    for (uint32_t kv : {EL_KV_F32, EL_KV_F16, EL_KV_I8, EL_KV_I4}) run(arguments[3], name, kv, uint32_t(atoi(arguments[2])), ids);
  return 0;
}
