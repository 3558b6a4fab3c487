#include "conversation.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>

namespace edgeloop_jni {
namespace {

[[noreturn]] void refuse(const std::string& line) { throw Error{EL_USAGE, line}; }

float threshold_of(const std::string& text) {
  char* end = nullptr;
  const float found = std::strtof(text.c_str(), &end);
  if (text.empty() || *end) refuse("found the threshold '" + text + "', wanted a number");
  return found;
}

// The policy of `exit`; `thresholds` lives as long as it.
el_policy policy_of(const std::string& exit, const el_info& info, std::vector<float>& thresholds) {
  el_policy policy = {};
  policy.struct_bytes = sizeof policy;
  policy.depths = policy.stop = info.depths;
  policy.shared = info.shares_kv;
  const size_t colon = std::min(exit.find(':'), exit.size());
  const std::string rule = exit.substr(0, colon), rest = exit.substr(std::min(colon + 1, exit.size()));
  if (rule == "never" && rest.empty()) return policy;
  const uint32_t skipped = info.shares_kv ? EL_SKIPPED_NONE : EL_SKIPPED_PROPAGATE;
  if (rule == "depth") {
    policy.rule = EL_RULE_DEPTH;
    policy.skipped = skipped;
    policy.stop = uint32_t(threshold_of(rest));
  } else if (rule == "latent") {
    policy.rule = EL_RULE_LATENT;
    policy.skipped = skipped;
    for (size_t at = 0; at <= rest.size();) {
      const size_t comma = std::min(rest.find(',', at), rest.size());
      thresholds.push_back(threshold_of(rest.substr(at, comma - at)));
      at = comma + 1;
    }
    if (thresholds.size() == 1) thresholds.resize(info.depths - 1, thresholds[0]);
    if (thresholds.size() != info.depths - 1)
      refuse("found " + std::to_string(thresholds.size()) + " thresholds, wanted 1 or " +
             std::to_string(info.depths - 1));
    policy.thresholds = thresholds.data();
  } else {
    refuse("found the exit '" + exit + "', wanted never, depth:N or latent:X");
  }
  return policy;
}

uint64_t now() {
  return uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::steady_clock::now().time_since_epoch())
                      .count());
}

}  // namespace

void check(int code, const char* line) {
  if (code != EL_OK) throw Error{code, line};
}

Conversation::Conversation(el_model* model, uint32_t capacity, uint32_t kv, const std::string& exit) {
  char error[EL_ERROR_SIZE];
  el_info info = {};
  info.struct_bytes = sizeof info;
  check(el_model_info(model, &info, error), error);
  std::vector<float> thresholds;
  const el_policy policy = policy_of(exit, info, thresholds);
  el_session_options room = {};
  room.struct_bytes = sizeof room;
  room.sequences = 1;
  room.capacity = capacity ? capacity : info.context_length;
  room.kv = kv;
  capacity_ = room.capacity, vocabulary_ = info.vocab_size;
  check(el_session_new(model, &room, &session_, error), error);
  int code = el_decoder_new(session_, 0, &policy, &decoder_, error);
  if (code == EL_OK) code = el_batch_new(session_, &batch_, error);
  if (code == EL_OK) return;
  el_decoder_free(decoder_);
  el_session_free(session_);
  throw Error{code, error};
}

Conversation::~Conversation() {
  el_batch_free(batch_);
  el_decoder_free(decoder_);
  el_session_free(session_);
}

void Conversation::sample(const el_sampling& sampling) {
  char error[EL_ERROR_SIZE];
  check(el_decoder_sample(decoder_, &sampling, error), error);
}

void Conversation::append(const std::vector<int64_t>& ids) {
  if (ids.size() > capacity_ - ids_.size())
    refuse(std::to_string(ids.size()) + " tokens behind " + std::to_string(ids_.size()) + ", and there is room for " +
           std::to_string(capacity_));
  for (int64_t id : ids)
    if (id < 0 || id >= vocabulary_)
      refuse("found token " + std::to_string(id) + ", wanted 0 to " + std::to_string(vocabulary_ - 1));
  ids_.insert(ids_.end(), ids.begin(), ids.end());
}

void Conversation::seek(size_t tokens) {
  if (tokens > ids_.size())
    refuse("found token " + std::to_string(tokens) + " to go back to, and there are " + std::to_string(ids_.size()));
  if (tokens < run_) {
    char error[EL_ERROR_SIZE];
    check(el_decoder_truncate(decoder_, uint32_t(tokens), error), error);
    run_ = tokens;
  }
  ids_.resize(tokens);
}

el_stats Conversation::stats() const {
  char error[EL_ERROR_SIZE];
  el_stats stats = {};
  stats.struct_bytes = sizeof stats;
  check(el_session_stats(session_, &stats, error), error);
  return stats;
}

void Conversation::stop() {
  stopped_ = true;
  el_stop(session_);
}

bool Conversation::next(int64_t* token, uint32_t* depth) {
  char error[EL_ERROR_SIZE];
  for (;;) {
    int code;
    const size_t left = ids_.size() - run_;
    if (left > 1) {
      el_turn turn = {};
      turn.struct_bytes = sizeof turn;
      turn.chooses = EL_CHOOSES_DECODER;
      turn.decoder = decoder_;
      turn.text = ids_.data() + run_;
      turn.text_count = uint32_t(left);
      turn.error = error;
      code = el_batch_next(batch_, &turn, 1, nullptr, nullptr, error);
      if (code == EL_OK) code = turn.code;
      *token = turn.token, *depth = turn.depths;
    } else {
      uint32_t made = 0;
      code = el_decoder_next(decoder_, ids_.back(), nullptr, 0, 1, token, depth, &made, error);
    }
    if (code == EL_OK) {
      run_ = ids_.size();
      return true;
    }
    // A stop that came when the answer before this one had just ended is not for this one.
    if (code == EL_STOPPED && !stopped_) continue;
    if (code == EL_STOPPED) return false;
    throw Error{code, error};
  }
}

Answer Conversation::answer(uint32_t most, const std::vector<int64_t>& ends,
    const std::function<bool(int64_t, uint32_t, uint64_t)>& on_token) {
  if (ids_.empty()) refuse("there is nothing to answer: append a text first");
  if (run_ == ids_.size()) {  // the last one's logits are gone: it is run again
    char error[EL_ERROR_SIZE];
    check(el_decoder_truncate(decoder_, uint32_t(run_ - 1), error), error);
    run_--;
  }
  Answer answer;
  const uint64_t start = now();
  uint64_t before = start;
  while (!stopped_) {
    int64_t token = -1;
    uint32_t depth = 0;
    if (!next(&token, &depth)) break;
    const uint64_t then = now();
    if (!answer.tokens) answer.prompt_nanoseconds = then - start;
    if (token < 0) throw Error{EL_USAGE, "the model's logits leave no token to choose"};
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) {
      answer.finish = END;
      break;
    }
    if (ids_.size() == capacity_) {
      answer.finish = CONTEXT;
      break;
    }
    ids_.push_back(token);
    answer.tokens++;
    const bool more = on_token(token, depth, then - before);
    before = then;
    if (!more) break;
    if (answer.tokens == most) {
      answer.finish = LENGTH;
      break;
    }
  }
  answer.nanoseconds = now() - start;
  return answer;
}

}  // namespace edgeloop_jni
