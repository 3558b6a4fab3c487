// The depth loop over the methods of a .pte: a sequence's K and V for each depth, prompts in chunks, then token by token.
//
// It is what an Android app's JNI starts from: runtime/engines/executorch/bridge.cpp below, this loop above.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.h"

namespace edgeloop::pte {

// What a stage took: once for each call, prompts and single tokens apart.
struct Spent {
  std::string stage;  // "prologue", "block", "epilogue" or "head"
  int depth;          // 1 … of a block; 0
  uint64_t prompt_ns = 0, prompt_calls = 0, token_ns = 0, token_calls = 0;
};

class Loop {
 public:
  // `depths`: that tokens of an answer run, 0 for all; those of a prompt run all. `threads`: 1 is the caller's alone, 0 as many as ExecuTorch's pool has.
  // Throws a Problem for a program that is not the bundle's, or does not load.
  Loop(const Bundle& bundle, int depths, int threads);
  ~Loop();
  Loop(const Loop&) = delete;

  // The most likely token behind the prompt `ids` [count], which comes behind the tokens so far: in chunks, if it is long.
  // Throws a Problem for an id that there is not, or more tokens than the context has.
  int64_t prompt(const int64_t* ids, size_t count);
  // The same behind one token of an answer, which leaves after depths(): then it has no K and V deeper, and what comes next
  // is another one, or a prompt that begins with it (back).
  int64_t step(int64_t token);
  // Only the first `tokens` stay: what comes next is written over the others.
  void back(size_t tokens);

  size_t tokens() const { return size_t(cached_); }
  size_t room() const { return size_t(sizes_.context - cached_); }
  int depths() const { return depths_; }
  bool leaves_early() const { return depths_ < sizes_.depths; }
  // Calls so far that ran a part of a prompt at once.
  uint64_t chunks() const { return chunks_; }
  std::vector<Spent> spent() const;
  void forget_spent();

 private:
  struct Rows;   // the inputs and outputs of calls with a certain number of rows
  struct Stage;  // a stage at a depth: its caches, and its methods bound to them
  void check(const int64_t* ids, size_t count) const;
  void pass(Rows& rows, const int64_t* ids, int count, bool prompt, bool wanted);
  int64_t likeliest() const;
  void run(Stage& stage, Rows& rows, int count, bool prompt);
  void reserve(int rows);
  void show(Rows& rows, int count) const;

  const Bundle& bundle_;
  const Sizes& sizes_;
  int depths_, laid_out_ = 0, cached_ = 0;
  uint64_t chunks_ = 0;
  void* program_;
  std::unique_ptr<Rows> one_, chunk_;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::unique_ptr<Stage> head_;
  std::vector<float> logits_;
};

}  // namespace edgeloop::pte
