// An answer: what is new is run, then token after token, until something ends it.
#include <algorithm>
#include <chrono>

#include "../edgeloop_text.h"
#include "context.h"

namespace edgeloop::context {

namespace {

using Clock = std::chrono::steady_clock;

uint64_t since(Clock::time_point begin) {
  return uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count());
}

// The text of an answer, or nothing where there is no tokenizer.
class Writer {
 public:
  Writer(const el_text* text, const std::vector<int64_t>& prompt, const std::vector<const char*>& stops) {
    if (!text && !stops.empty()) fail(EL_USAGE, "stop strings without a tokenizer, which never come; leave them out");
    if (!text) return;
    Error error;
    error.code = el_code(el_writer_new(text, prompt.data(), prompt.size(), stops.data(), uint32_t(stops.size()), &writer_, error.text));
    if (error.code != EL_OK) throw error;
  }
  ~Writer() { el_writer_free(writer_); }
  Writer(const Writer&) = delete;

  // Adds to `text` what `token` completes → whether a stop string has come.
  bool push(int64_t token, std::string& text) {
    uint32_t stopped = 0;
    take(text, [&](const char** utf8, size_t* bytes, char* error) { return el_writer_push(writer_, token, utf8, bytes, &stopped, error); });
    return stopped;
  }
  void end(std::string& text) {
    take(text, [&](const char** utf8, size_t* bytes, char* error) { return el_writer_end(writer_, utf8, bytes, error); });
  }

 private:
  template <class Call>
  void take(std::string& text, Call call) {
    if (!writer_) return;
    const char* utf8 = nullptr;
    size_t bytes = 0;
    Error error;
    error.code = el_code(call(&utf8, &bytes, error.text));
    if (error.code != EL_OK) throw error;
    if (bytes) text.append(utf8, bytes);
  }
  el_writer* writer_ = nullptr;
};

}  // namespace

void Context::answer(const Given& given, el_answer& told) {
  const Clock::time_point begin = Clock::now();
  if (ids_.empty()) fail(EL_USAGE, "the context is empty; append a text, or say something");
  check_room(ids_.size());
  const bool turn = turns_ && turns_ == messages_.size() && messages_.back().role != ASSISTANT;
  const bool goes_on = !turn && turns_ && !messages_.empty() && messages_.back().role == ASSISTANT && answer_ >= 0;
  const uint64_t room = capacity() - ids_.size() + 1;  // the last token needs no row
  const bool bounded = given.max_tokens && given.max_tokens <= room;
  const uint64_t most = bounded ? given.max_tokens : room;
  Writer writer(text_, ids_, given.stops);
  decoder().settle();
  decoder().sampler = decode::Sampler({sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed});
  if (answer_ < 0) answer_ = int64_t(ids_.size());
  told.forgotten = forgotten_;
  forgotten_ = 0;
  told.tokens = told.prompt_tokens = 0;
  told.prompt_nanoseconds = told.first_nanoseconds = told.nanoseconds = 0;
  std::string said, text;
  if (turn && size_t(answer_) < ids_.size()) {  // what was kept of an answer that was gone back into
    const std::vector<int64_t> prompt(ids_.begin(), ids_.begin() + answer_);
    Writer earlier(text_, prompt, {});
    for (size_t i = prompt.size(); i < ids_.size(); i++) earlier.push(ids_[i], said);
    earlier.end(said);
  }
  const auto remember = [&] {
    if (turn) messages_.push_back({ASSISTANT, said});
    if (goes_on) messages_.back().content += said;
    told.nanoseconds = since(begin);
  };
  const bool ends = !(given.flags & EL_ANSWER_ENDLESS);
  const std::vector<int64_t>& end_ids = app().ends;
  try {
    uint32_t depth = 0;
    int64_t token = prefill(told.prompt_tokens, depth);
    told.prompt_nanoseconds = since(begin);
    if (decoder().pipeline) {
      const std::lock_guard alone(model_.computing);
      decoder().pipeline->begin(ids_.data(), ids_.size());
    }
    for (Clock::time_point before = begin;;) {
      if (token == decode::NO_TOKEN) fail(EL_FORMAT, "the model's logits are no numbers");
      ids_.push_back(token);
      end_ = ids_.size();
      told.tokens++, generated_++;
      if (depth >= 1 && depth <= exits.size()) exits[depth - 1]++;
      text.clear();
      const bool stopped = writer.push(token, text);
      bool over = true;
      if (ends && std::find(end_ids.begin(), end_ids.end(), token) != end_ids.end()) {
        told.why = EL_WHY_END;
      } else if (stopped) {
        told.why = EL_WHY_STRING;
      } else if (told.tokens == most) {
        told.why = bounded ? EL_WHY_LENGTH : EL_WHY_CONTEXT;
      } else {
        over = false;
      }
      if (over) writer.end(text);
      said += text;
      if (!told.first_nanoseconds && (!text.empty() || !text_)) told.first_nanoseconds = since(begin);
      const el_piece piece = {sizeof piece, depth, token, text.data(), text.size(), since(before)};
      if (given.on_piece && given.on_piece(given.user, &piece) && !over) told.why = EL_WHY_STOPPED, over = true;
      if (over) break;
      before = Clock::now();
      token = next(token, depth);
    }
  } catch (const Error& error) {
    remember();
    if (error.code != EL_STOPPED) throw;
    told.why = EL_WHY_STOPPED;
    return;
  }
  remember();
}

}  // namespace edgeloop::context
