// The C interface of what an app needs (edgeloop_context.h).
#include <cmath>
#include <cstring>

#include "../guarded.h"
#include "../text/text.h"
#include "context.h"

using namespace edgeloop;
using namespace edgeloop::context;

namespace {

constexpr size_t MOST_TEXT = size_t(64) << 20;  // bytes of a message, or of a text
constexpr uint32_t MOST_STOPS = 1000;

Context& given(el_context* context) {
  if (!context) fail(EL_USAGE, "context is NULL");
  return context->context;
}

const Context& given(const el_context* context) {
  if (!context) fail(EL_USAGE, "context is NULL");
  return context->context;
}

const App& app_of(const el_model* model) {
  if (!model) fail(EL_USAGE, "model is NULL");
  return *model->app;
}

// Throws unless `text` is UTF-8: whole characters, the shortest form of each, no halves of pairs.
void check_utf8(const char* text, size_t bytes, const char* what) {
  const uint8_t *at = reinterpret_cast<const uint8_t*>(text), *end = at + bytes;
  while (at < end) {
    const uint8_t c = *at;
    const int more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : -1;
    bool good = more >= 0 && end - at > more;
    for (int i = 1; good && i <= more; i++) good = (at[i] & 0xc0) == 0x80;
    if (good && more >= 2) {
      const uint8_t second = at[1];
      good = !(c == 0xe0 && second < 0xa0) && !(c == 0xed && second > 0x9f) && !(c == 0xf0 && second < 0x90) && !(c == 0xf4 && second > 0x8f);
    }
    if (!good) fail(EL_USAGE, "%s is no UTF-8 from byte %zu on", what, size_t(at - reinterpret_cast<const uint8_t*>(text)));
    at += more + 1;
  }
}

Message message_of(const char* role, const char* content) {
  if (!role || !content) fail(EL_USAGE, "role or content is NULL");
  const size_t bytes = std::strlen(content);
  if (bytes > MOST_TEXT) fail(EL_USAGE, "a message of %zu bytes, wanted %zu at most", bytes, MOST_TEXT);
  check_utf8(content, bytes, "a message");
  return {role_of(role), std::string(content, bytes)};
}

std::vector<Message> messages_of(const el_message* messages, uint32_t count) {
  if (count && !messages) fail(EL_USAGE, "messages is NULL");
  if (count > MOST_MESSAGES) fail(EL_USAGE, "%u messages, wanted %u at most", count, MOST_MESSAGES);
  std::vector<Message> found;
  for (uint32_t i = 0; i < count; i++) found.push_back(message_of(messages[i].role, messages[i].content));
  return found;
}

Options options_of(const el_context_options* given) {
  el_context_options options = {};
  options.struct_bytes = sizeof options;
  if (given) {
    check_struct(given->struct_bytes, sizeof options, "el_context_options");
    options = *given;
  }
  if (options.drafts > EL_DRAFTS_NEVER) fail(EL_USAGE, "there are no drafts %u of a context", options.drafts);
  if (options.think && options.think != EL_RENDER_THINK && options.think != EL_RENDER_NO_THINK)
    fail(EL_USAGE, "think is %u, wanted 0, EL_RENDER_THINK or EL_RENDER_NO_THINK", options.think);
  return {options.capacity, options.kv, options.drafts, options.think, options.answer_room, options.exit ? options.exit : "",
      options.skipped_kv ? options.skipped_kv : "", options.exit != nullptr, options.skipped_kv != nullptr};
}

el_sampling checked(const el_sampling& s) {
  check_struct(s.struct_bytes, sizeof s, "el_sampling");
  if (!(s.temperature >= 0) || std::isinf(s.temperature)) fail(EL_USAGE, "a temperature of %g, wanted 0 or more", s.temperature);
  if (!(s.top_p > 0 && s.top_p <= 1)) fail(EL_USAGE, "a top_p of %g, wanted more than 0 and at most 1", s.top_p);
  if (!(s.min_p >= 0 && s.min_p <= 1)) fail(EL_USAGE, "a min_p of %g, wanted 0 to 1", s.min_p);
  return s;
}

template <class T>
void give(const std::vector<T>& from, T* to, size_t room, size_t* count) {
  if (!count || (room && !to)) fail(EL_USAGE, "where to put it, or count, is NULL");
  *count = from.size();
  std::copy(from.begin(), from.begin() + ptrdiff_t(std::min(room, from.size())), to);
}

// What el_render does; `turns` or null.
void render(const context::Turns* turns, const el_message* messages, uint32_t count, uint32_t flags, char* utf8, size_t room, size_t* bytes) {
  if (!bytes || (room && !utf8)) fail(EL_USAGE, "utf8 or bytes is NULL");
  if (!turns) fail(EL_USAGE, "the model has no turns for conversations");
  if (flags > 7 || (flags & 6) == 6) fail(EL_USAGE, "there are no el_render_flag %u", flags);
  const uint32_t table = flags & EL_RENDER_THINK ? 1 : flags & EL_RENDER_NO_THINK ? 2 : 0;
  if (table >= turns->tables()) fail(EL_USAGE, "the model is not asked to think or not to; leave it out");
  const std::string text = turns->render(messages_of(messages, count), flags & EL_RENDER_ANSWER, table);
  *bytes = text.size();
  if (room) std::memcpy(utf8, text.data(), std::min(room, text.size()));
}

const text::Text& given(const el_text* text) {
  if (!text) fail(EL_USAGE, "text is NULL");
  return text->text;
}

}  // namespace

int el_model_about(const el_model* model, el_about* about, char* error) {
  return guarded(error, [&] {
    const App& app = app_of(model);
    if (!about) fail(EL_USAGE, "about is NULL");
    check_struct(about->struct_bytes, sizeof *about, "el_about");
    about->turns = !app.turns ? EL_TURNS_NONE : app.turns->alternate() ? EL_TURNS_ALTERNATE : EL_TURNS_ANY;
    about->system = app.turns && app.turns->takes_system();
    about->thinking = app.turns && app.turns->tables() > 1;
    about->ends_count = uint32_t(app.ends.size()), about->ends = app.ends.data();
    about->exits_count = uint32_t(app.rules.size()), about->exits = app.rules.data();
    about->name = app.name.c_str();
  });
}

int el_render(const el_model* model, const el_message* messages, uint32_t count, uint32_t flags, char* utf8, size_t room,
    size_t* bytes, char* error) {
  return guarded(error, [&] { render(app_of(model).turns.get(), messages, count, flags, utf8, room, bytes); });
}

int el_text_render(const el_text* text, const el_message* messages, uint32_t count, uint32_t flags, char* utf8, size_t room,
    size_t* bytes, char* error) {
  return guarded(error, [&] {
    const View<uint8_t> found = given(text).table<uint8_t>(text::file::TURNS);
    std::unique_ptr<context::Turns> turns;
    if (found.count) turns = std::make_unique<context::Turns>(context::Record(found, "turns"));
    render(turns.get(), messages, count, flags, utf8, room, bytes);
  });
}

int el_text_ends(const el_text* text, int64_t* ids, size_t room, size_t* count, char* error) {
  return guarded(error, [&] {
    About about;
    about.read(given(text).table<uint8_t>(text::file::ABOUT), text::file::MAX_TOKENS - 1);
    give(about.ends, ids, room, count);
  });
}

int el_context_new(el_model* model, const el_text* text, const el_context_options* options, el_context** context, char* error) {
  return guarded(error, [&] {
    if (!model || !context) fail(EL_USAGE, "model or context is NULL");
    *context = new el_context(*model, text, options_of(options));
  });
}

void el_context_free(el_context* context) { delete context; }

int el_context_append(el_context* context, const int64_t* ids, size_t count, char* error) {
  return guarded(error, [&] {
    if (count && !ids) fail(EL_USAGE, "ids is NULL");
    given(context).append(ids, count);
  });
}

int el_context_text(el_context* context, const char* utf8, size_t bytes, char* error) {
  return guarded(error, [&] {
    Context& own = given(context);
    if (bytes && !utf8) fail(EL_USAGE, "utf8 is NULL");
    if (bytes > MOST_TEXT) fail(EL_USAGE, "a text of %zu bytes, wanted %zu at most", bytes, MOST_TEXT);
    check_utf8(utf8, bytes, "the text");
    own.append_text(utf8, bytes);
  });
}

int el_context_say(el_context* context, const char* role, const char* content, char* error) {
  return guarded(error, [&] { given(context).say(message_of(role, content)); });
}

int el_context_chat(el_context* context, const el_message* messages, uint32_t count, char* error) {
  return guarded(error, [&] { given(context).converse(messages_of(messages, count)); });
}

int el_context_answer(el_context* context, const el_answer_options* options, el_on_piece on_piece, void* user, el_answer* answer,
    char* error) {
  return guarded(error, [&] {
    Context& own = given(context);
    Given wanted;
    if (options) {
      check_struct(options->struct_bytes, sizeof *options, "el_answer_options");
      if (options->flags > EL_ANSWER_ENDLESS) fail(EL_USAGE, "there are no el_answer_flag %u", options->flags);
      if (options->stops_count > MOST_STOPS) fail(EL_USAGE, "%u stop strings, wanted %u at most", options->stops_count, MOST_STOPS);
      if (options->stops_count && !options->stops) fail(EL_USAGE, "stops is NULL");
      for (uint32_t i = 0; i < options->stops_count; i++)
        if (!options->stops[i]) fail(EL_USAGE, "stop string %u is NULL", i);
      wanted.max_tokens = options->max_tokens, wanted.flags = options->flags;
      wanted.stops.assign(options->stops, options->stops + options->stops_count);
    }
    if (answer) check_struct(answer->struct_bytes, sizeof *answer, "el_answer");
    if (options && options->sampling) own.sampling = checked(*options->sampling);
    wanted.on_piece = on_piece, wanted.user = user;
    el_answer told = {};
    told.struct_bytes = sizeof told;
    const auto tell = [&] {
      if (answer) *answer = told;
    };
    try {
      own.answer(wanted, told);
    } catch (...) {
      tell();
      throw;
    }
    tell();
  });
}

void el_context_stop(el_context* context) {
  if (context) el_stop(&context->context.session());
}

int el_context_length(const el_context* context, size_t* tokens, size_t* messages, char* error) {
  return guarded(error, [&] {
    const Context& own = given(context);
    if (tokens) *tokens = own.ids().size();
    if (messages) *messages = own.messages().size();
  });
}

int el_context_ids(const el_context* context, int64_t* ids, size_t room, size_t* count, char* error) {
  return guarded(error, [&] { give(given(context).ids(), ids, room, count); });
}

int el_context_message(const el_context* context, size_t number, el_message* message, char* error) {
  return guarded(error, [&] {
    const std::vector<Message>& messages = given(context).messages();
    if (!message) fail(EL_USAGE, "message is NULL");
    if (number >= messages.size()) fail(EL_USAGE, "message %zu of %zu, counted from 0", number, messages.size());
    *message = {name_of(messages[number].role), messages[number].content.c_str()};
  });
}

int el_context_seek(el_context* context, size_t tokens, char* error) {
  return guarded(error, [&] { given(context).truncate(tokens); });
}

int el_context_again(el_context* context, char* error) {
  return guarded(error, [&] { given(context).again(); });
}

int el_context_fork(el_context* context, el_context** other, char* error) {
  return guarded(error, [&] {
    Context& own = given(context);
    if (!other) fail(EL_USAGE, "other is NULL");
    *other = new el_context(own);
  });
}

int el_context_save(el_context* context, const char* path, char* error) {
  return guarded(error, [&] {
    Context& own = given(context);
    if (!path) fail(EL_USAGE, "path is NULL");
    own.save(path);
  });
}

int el_context_load(el_context* context, const char* path, char* error) {
  return guarded(error, [&] {
    Context& own = given(context);
    if (!path) fail(EL_USAGE, "path is NULL");
    own.load(path);
  });
}

int el_context_stats_read(const el_context* context, el_context_stats* stats, char* error) {
  return guarded(error, [&] {
    if (!context || !stats) fail(EL_USAGE, "context or stats is NULL");
    check_struct(stats->struct_bytes, sizeof *stats, "el_context_stats");
    const size_t depths = context->context.exits.size();
    if (stats->exits && stats->depths < depths) fail(EL_USAGE, "room for %u depths, wanted %zu", stats->depths, depths);
    stats->depths = uint32_t(depths);
    const_cast<el_context*>(context)->context.read_stats(*stats);
  });
}
