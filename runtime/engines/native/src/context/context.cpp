#include "context.h"

#include <algorithm>

#include "../edgeloop_text.h"
#include "../guarded.h"

namespace edgeloop::context {

namespace {

el_session_options session_options(const el_model& model, const Options& options) {
  el_session_options found = {};
  found.struct_bytes = sizeof found;
  found.sequences = 1;
  found.capacity = options.capacity ? options.capacity : model.model->header().context_length;
  found.kv = options.kv;
  return found;
}

// A call of the interface inside of another one: what it says goes on.
template <class Call>
void must(Call call) {
  Error error;
  error.code = el_code(call(error.text));
  if (error.code != EL_OK) throw error;
}

// An assignment, in less code.
template <class T>
void copy_to(T& to, const T& from) {
  T(from).swap(to);
}

bool has_mask(const Model& model, uint32_t mask) {
  return std::any_of(model.ops.begin(), model.ops.end(),
      [&](const file::Op& op) { return op.kind == file::ATTEND && op.numbers[5] == mask; });
}

}  // namespace

Context::Context(el_model& model, const el_text* text, const Options& options)
    : sampling{sizeof(el_sampling), 0, 0, 1, 0, 0}, model_(model), text_(text), options_(options) {
  if (has_mask(*model.model, file::BOTH)) fail(EL_USAGE, "an encoder makes vectors of texts and answers none");
  prefix_lm_ = has_mask(*model.model, file::PREFIX);
  chosen_ = choose_policy(model, *model.app->exits, options.has_exit ? options_.exit.c_str() : nullptr,
      options.has_skipped ? options_.skipped.c_str() : nullptr);
  session_ = std::make_unique<el_session>(model, session_options(model, options));
  decoder_ = std::make_unique<el_decoder>(*session_, 0, chosen_->policy);
  batch_ = std::make_unique<decode::Batch>(*session_);
  exits.resize(model.depths());
  if (options.drafts == EL_DRAFTS_AUTO && model.depths() > 1) {
    const std::lock_guard turn(model.computing);
    decoder().draft({});
  }
}

Context::Context(Context& other) : Context(other.model_, other.text_, other.options_) {
  const std::lock_guard turn(model_.computing);
  other.decoder().settle();
  const decode::Sequence& from = other.decoder().sequence;
  const uint32_t slots = session_->caches.slots_per_sequence(), depths = uint32_t(from.filled.size());
  const auto copy = [&](uint32_t stage, uint32_t slot, uint32_t tokens) {
    session_->caches.copy(stage, slot, 0, other.session_->caches, slot, 0, tokens);
  };
  copy(file::PROLOGUE, 0, from.cached);
  for (uint32_t slot = 0; slot < slots; slot++) copy(file::BLOCK, slot, from.filled[depths - slots + slot]);
  copy(file::EPILOGUE, 0, from.cached);
  decode::Sequence& own = decoder().sequence;
  own.cached = from.cached;
  copy_to(own.filled, from.filled), copy_to(own.held, from.held), copy_to(own.waiting, from.waiting);
  sampling = other.sampling;
  copy_to(ids_, other.ids_), copy_to(messages_, other.messages_);
  turns_ = other.turns_, said_ = other.said_;
  answer_ = other.answer_, end_ = other.end_, prefix_ = other.prefix_;
}

void Context::check_ids(const int64_t* ids, size_t count) const {
  const uint32_t vocab = model_.model->header().vocab_size;
  for (size_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocab) fail(EL_USAGE, "token id %lld, wanted 0 to %u", (long long)ids[i], vocab - 1);
}

void Context::check_room(size_t tokens) const {
  if (tokens > capacity())
    fail(EL_USAGE, "%zu tokens do not fit a context of %u; shorten the text", tokens, capacity());
}

std::vector<int64_t> Context::encode(const std::string& text, bool special) const {
  if (!text_) fail(EL_USAGE, "the context has no tokenizer: give el_context_new an el_text, or append ids");
  size_t count = 0;
  std::vector<int64_t> ids(text.size() / 3 + 16);
  for (;;) {
    must([&](char* error) { return el_encode(text_, text.data(), text.size(), special, ids.data(), ids.size(), &count, error); });
    const bool all = count <= ids.size();
    ids.resize(count);
    if (all) return ids;
  }
}

std::vector<int64_t> Context::rendered(const std::vector<Message>& messages) const {
  if (!app().turns) fail(EL_USAGE, "the model has no turns for conversations: give texts, or a conversation that you write yourself");
  const uint32_t table = options_.think == EL_RENDER_THINK ? 1 : options_.think == EL_RENDER_NO_THINK ? 2 : 0;
  if (table >= app().turns->tables()) fail(EL_USAGE, "the model is not asked to think or not to; leave it out");
  return encode(app().turns->render(messages, true, table), false);
}

void Context::extend(const int64_t* ids, size_t count) {
  if (!count) return;
  ids_.insert(ids_.end(), ids, ids + count);
  answer_ = -1;
}

void Context::append(const int64_t* ids, size_t count) {
  check_ids(ids, count);
  check_room(ids_.size() + count);
  extend(ids, count);
}

void Context::append_text(const char* utf8, size_t bytes) {
  if (!bytes) return;
  // What a tokenizer puts in front of a text is there already.
  const std::vector<int64_t> ids = encode(std::string(utf8, bytes), ids_.empty());
  append(ids.data(), ids.size());
}

void Context::replace(const std::vector<int64_t>& ids) {
  const size_t most = std::min(ids.size(), ids_.size());
  const size_t same = size_t(std::mismatch(ids.begin(), ids.begin() + ptrdiff_t(most), ids_.begin()).first - ids.begin());
  truncate(same);
  extend(ids.data() + same, ids.size() - same);
}

void Context::say(const Message& message) {
  if (messages_.empty() && !ids_.empty())
    fail(EL_USAGE, "a message behind a context that is no conversation; begin another one, or append text");
  std::vector<Message> messages = messages_;
  messages.push_back(message);
  converse(std::move(messages));
}

void Context::converse(std::vector<Message> messages) {
  if (messages.size() > MOST_MESSAGES) fail(EL_USAGE, "%zu messages, wanted %u at most", messages.size(), MOST_MESSAGES);
  const bool all_system = std::all_of(messages.begin(), messages.end(), [](const Message& m) { return m.role == SYSTEM; });
  if (all_system) {  // which nobody answers yet
    truncate(0);
    messages_ = std::move(messages);
    return;
  }
  // An answer that the context has already is remembered as it is said now, and written with the next turn.
  if (turns_ && answer_ >= 0 && messages.back().role == ASSISTANT) {
    const size_t count = messages.size() - 1, own = messages_.size() - (messages_.back().role == ASSISTANT);
    if (count == own && std::equal(messages.begin(), messages.end() - 1, messages_.begin())) {
      messages_.swap(messages);
      return;
    }
  }
  std::vector<int64_t> ids = rendered(messages);
  const uint32_t room = capacity() - std::min(options_.answer_room, capacity() / 2);
  const size_t all = messages.size();
  if (options_.answer_room && ids.size() > room) {
    // The oldest turns go, until half of the room is free: what is left has to be run again, so that has to happen seldom.
    size_t first = 0;
    while (messages[first].role == SYSTEM) first++;
    while (ids.size() > room / 2) {
      size_t start = first + 1;
      while (start < messages.size() && messages[start].role != USER) start++;
      if (start >= messages.size()) break;
      messages.erase(messages.begin() + ptrdiff_t(first), messages.begin() + ptrdiff_t(start));
      ids = rendered(messages);
    }
  }
  check_room(ids.size());
  forgotten_ += uint32_t(all - messages.size());
  replace(ids);
  messages_ = std::move(messages);
  turns_ = messages_.size(), said_ = ids_.size();
}

void Context::truncate(size_t tokens) {
  if (tokens > ids_.size()) fail(EL_USAGE, "cannot go back to %zu tokens, the context has %zu", tokens, ids_.size());
  if (tokens == ids_.size() && tokens) return;
  ids_.resize(tokens);
  if (answer_ > int64_t(tokens)) answer_ = -1;
  end_ = std::min(end_, tokens);
  if (tokens < said_ || !tokens) turns_ = said_ = 0;
  messages_.resize(std::min(turns_, messages_.size()));
  take_back(tokens);
}

void Context::again() {
  if (answer_ < 0 || size_t(answer_) >= ids_.size()) fail(EL_USAGE, "there is no answer at the end of the context");
  truncate(size_t(answer_));
}

bool Context::can_truncate(size_t tokens) {
  const Caches& caches = session_->caches;
  const decode::Sequence& sequence = decoder().sequence;
  const uint32_t at = uint32_t(tokens);
  if (tokens && tokens < prefix_) return false;  // what is left has seen what is to go
  if (!tokens || tokens >= sequence.cached) return true;
  for (uint32_t stage = 0; stage < file::STAGES_WITH_CACHES; stage++)
    if (caches.kept_floats(stage)) return false;
  for (uint32_t depth = 0; depth < sequence.filled.size(); depth++)
    if (!caches.can_truncate(sequence.filled[depth], sequence.rows_before(depth, at))) return false;
  return caches.can_truncate(sequence.cached, at);
}

void Context::reset() {
  decoder().settle();
  decoder().sequence.truncate(0);
  prefix_ = 0;
}

void Context::take_back(size_t tokens) {
  decoder().settle();
  decode::Sequence& sequence = decoder().sequence;
  if (tokens >= sequence.cached) return;
  if (!can_truncate(tokens)) return reset();
  sequence.truncate(uint32_t(tokens));
  prefix_ = std::min(prefix_, uint32_t(tokens));
}

// Texts of at most CHUNK tokens up to `end`, or of a whole prompt where its tokens see each other.
void Context::run_text(size_t end, bool chooses, int64_t& chosen) {
  decode::Decoder& d = decoder();
  const size_t prompt = answer_ < 0 ? ids_.size() : size_t(answer_);
  while (d.sequence.cached < end) {
    const size_t at = d.sequence.cached;
    const bool prefix = prefix_lm_ && !at;
    const size_t count = prefix ? std::min(prompt, end) : std::min<size_t>(end - at, CHUNK);
    const std::lock_guard turn(model_.computing);
    d.catch_up();
    el_turn given = {};
    char error[EL_ERROR_SIZE] = "";
    given.struct_bytes = sizeof given;
    given.decoder = decoder_.get();
    given.text = ids_.data() + at;
    given.text_count = uint32_t(count);
    given.chooses = chooses && at + count == end ? EL_CHOOSES_DECODER : EL_CHOOSES_NOBODY;
    given.error = error;
    batch_->run(&given, 1);
    if (given.code != EL_OK) fail(el_code(given.code), "%s", error);
    if (prefix) prefix_ = uint32_t(count);
    chosen = given.token;
  }
}

// Runs `token` → the next one.
int64_t Context::next(int64_t token, uint32_t& depth) {
  const std::lock_guard turn(model_.computing);
  decoder().run(token);
  depth = decoder().ran;
  return decoder().choose();
}

// Runs what has not been run, or the last token once more, for its logits → the first token of an answer. `ran`: tokens
// that it took; `depth`: depths that the last of them ran.
int64_t Context::prefill(uint32_t& ran, uint32_t& depth) {
  decode::Decoder& d = decoder();
  const size_t count = ids_.size(), prompt = answer_ < 0 ? count : size_t(answer_);
  if (prefix_lm_ && prefix_ && prefix_ != prompt) reset();
  if (d.sequence.cached >= count) take_back(count - 1);
  d.settle();
  const size_t begin = d.sequence.cached;
  ran = uint32_t(count - begin);
  int64_t chosen = decode::NO_TOKEN;
  // The last token of an answer is run as one that was generated, whatever comes behind it.
  const bool alone = prefix_lm_ && !begin;
  if (end_ && begin == end_ - 1 && (end_ == count || d.policy.rule.exits_early()) && !alone) chosen = next(ids_[begin], depth);
  if (d.policy.rule.routed()) {
    while (d.sequence.cached < count) chosen = next(ids_[d.sequence.cached], depth);
  } else if (d.sequence.cached < count) {
    run_text(count, true, chosen);
    depth = d.policy.rule.depths;
  }
  return chosen;
}

void Context::read_stats(el_context_stats& stats) {
  const std::lock_guard turn(model_.computing);
  const KvBytes held = session_->caches.bytes();
  stats.tokens = ids_.size(), stats.cached = decoder().sequence.cached;
  stats.kv_bytes = held.all, stats.shared_bytes = held.shared;
  stats.generated = generated_;
  stats.drafts = stats.drafts_right = 0;
  if (const decode::Pipeline* pipeline = decoder().pipeline.get()) {
    stats.drafts = pipeline->counts.fed[0] + pipeline->counts.fed[1];
    stats.drafts_right = pipeline->counts.right[0] + pipeline->counts.right[1];
  }
  if (stats.exits) std::copy(exits.begin(), exits.end(), stats.exits);
}

}  // namespace edgeloop::context
