#include "saved.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../guarded.h"
#include "saved_arrays.h"

namespace edgeloop::context {

namespace {

const char* const STAGES[] = {"prologue", "block", "epilogue"};

// A slot that holds rows: of the session's sequence 0.
struct Held {
  uint32_t stage, slot, tokens;
};

std::vector<Held> held(const Caches& caches, uint32_t cached, const std::vector<uint32_t>& filled) {
  std::vector<Held> found = {{file::PROLOGUE, 0, cached}};
  const uint32_t slots = caches.slots_per_sequence();
  for (uint32_t slot = 0; slot < slots; slot++) found.push_back({file::BLOCK, slot, filled[filled.size() - slots + slot]});
  found.push_back({file::EPILOGUE, 0, cached});
  return found;
}

// One side of the rows of one cache: bytes of a head and token, and where they lie in a row of a slot.
struct Side {
  const char *name, *type;
  size_t numbers, bytes, at;  // numbers: of a head and token; 0: one, in an array of two dimensions
};

std::vector<Side> sides_of(const file::Cache& cache, el_kv kv, size_t& at) {
  const size_t heads = cache.kv_heads, dim = cache.head_dim;
  const size_t codes = (dim + 31) / 32 * 16, scales = (dim + 31) / 32 * 2;
  std::vector<Side> found;
  switch (kv) {
    case EL_KV_F32: found = {{"key", "F32", dim, dim * 4, 0}, {"value", "F32", dim, dim * 4, 0}}; break;
    case EL_KV_F16: found = {{"key", "F16", dim, dim * 2, 0}, {"value", "F16", dim, dim * 2, 0}}; break;
    case EL_KV_I8:
      found = {{"key", "I8", dim, dim, 0}, {"value", "I8", dim, dim, 0}, {"key_scales", "F32", 0, 4, 0}, {"value_scales", "F32", 0, 4, 0}};
      break;
    case EL_KV_I4:
      found = {{"key", "U8", codes, codes, 0}, {"value", "U8", codes, codes, 0}, {"key_scales", "F16", scales, scales * 2, 0},
          {"value_scales", "F16", scales, scales * 2, 0}};
  }
  for (Side& side : found) side.at = at, at += heads * side.bytes;
  return found;
}

// What of a context is no rows.
struct Numbers {
  uint32_t tokens = 0, cached = 0;
  std::vector<uint32_t> filled;
  std::vector<uint32_t> waiting_first, waiting;  // by depth: one piece each, or none
  bool gaps = false;
  std::vector<Held> last;  // slots whose last rows are kept
};

std::vector<Array> arrays_of(const el_session& session, const Numbers& numbers) {
  const Caches& caches = session.caches;
  std::vector<Array> found = {{"ids", "I32", {numbers.tokens}}};
  if (numbers.gaps)
    for (size_t depth = 0; depth < numbers.filled.size(); depth++)
      found.push_back({"held." + std::to_string(depth), "I32", {numbers.filled[depth]}});
  for (size_t depth = 0; depth < numbers.waiting.size(); depth++)
    if (numbers.waiting[depth])
      found.push_back({"waiting." + std::to_string(depth) + ".0", "F32", {numbers.waiting[depth], session.model.model->width()}});
  const auto place = [](uint32_t stage, uint32_t slot, size_t i) {
    return std::string(STAGES[stage]) + "." + std::to_string(slot) + "." + std::to_string(i);
  };
  const Model& model = *session.model.model;
  for (const Held& last : numbers.last)
    for (uint32_t i = 0; i < model.header().kept[last.stage].count; i++)
      found.push_back({"last." + place(last.stage, last.slot, i), "F32", {model.kept[model.header().kept[last.stage].first + i]}});
  for (const Held& each : held(caches, numbers.cached, numbers.filled)) {
    size_t at = 0;
    for (uint32_t i = 0; i < caches.caches(each.stage); i++)
      for (const Side& side : sides_of(caches.cache(each.stage, i), caches.kv(), at)) {
        std::vector<size_t> shape = {caches.cache(each.stage, i).kv_heads, each.tokens};
        if (side.numbers) shape.push_back(side.numbers);
        found.push_back({place(each.stage, each.slot, i) + "." + side.name, side.type, shape});
      }
  }
  return found;
}

// Goes through the bytes of every head and side of a slot's rows [count][row], in the order of the file: a piece of them is
// gathered and written, or read and put where it belongs.
void exchange(const Caches& caches, const Held& held, std::vector<uint8_t>& rows, ArraysWriter* out, ArraysReader* in) {
  if (!held.tokens) return;
  const size_t row = caches.row_bytes(held.stage);
  size_t at = 0;
  std::vector<uint8_t> piece;
  for (uint32_t i = 0; i < caches.caches(held.stage); i++)
    for (const Side& side : sides_of(caches.cache(held.stage, i), caches.kv(), at))
      for (uint32_t head = 0; head < caches.cache(held.stage, i).kv_heads; head++) {
        piece.resize(held.tokens * side.bytes);
        uint8_t* const first = rows.data() + side.at + head * side.bytes;
        if (in) in->take(piece.data(), piece.size());
        for (uint32_t t = 0; t < held.tokens; t++)
          in ? std::memcpy(first + t * row, &piece[t * side.bytes], side.bytes) : std::memcpy(&piece[t * side.bytes], first + t * row, side.bytes);
        if (out) out->put(piece.data(), piece.size());
      }
}

// Appends what printf would make; strings are appended by themselves.
__attribute__((noinline, format(printf, 2, 3))) void put(std::string& out, const char* format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  out.append(text, size_t(std::vsnprintf(text, sizeof text, format, values)));
  va_end(values);
}

// `,"name":` and the text between quotes.
void put_text(std::string& out, const char* name, const std::string& text) {
  put(out, ",\"%s\":", name);
  out += json::quoted(text);
}

// Puts commas between what is appended to a list.
void next(std::string& list) {
  if (list.back() != '[') list += ',';
}

// A member of the header: a whole number up to `most`.
uint32_t whole(const ArraysReader& reader, const json::Value& header, const char* name, double most) {
  const json::Value* found = header.find(name);
  const double x = found && found->kind == json::Value::number ? found->amount : -1;
  if (!(x >= 0 && x <= most && x == std::floor(x))) reader.wrong("its header has a number out of range");
  return uint32_t(x);
}

}  // namespace

void Saved::write(Context& context, const char* path) {
  const App& app = context.app();
  if (app.identity.empty()) fail(EL_USAGE, "the file does not say which model it is; export it again to save sessions");
  const std::lock_guard turn(context.model_.computing);
  context.decoder().settle();
  const decode::Sequence& sequence = context.decoder().sequence;
  el_session& session = context.session();
  const ChosenPolicy& policy = *context.chosen_;
  Numbers numbers;
  numbers.tokens = uint32_t(context.ids_.size()), numbers.cached = sequence.cached, numbers.filled = sequence.filled;
  numbers.gaps = sequence.policy.gaps;
  const file::Header& header = context.model_.model->header();
  std::string text = "{\"format\":1";
  put_text(text, "edgeloop", app.edgeloop), put_text(text, "model", app.name);
  put(text, ",\"owner\":{\"depths\":%zu", sequence.filled.size());
  put_text(text, "bundle", app.identity), put_text(text, "exit", policy.exit);
  put_text(text, "skipped_kv", policy.skipped), put_text(text, "kv", policy.kv);
  put(text, "},\"tokens\":%u,\"cached\":%u,\"filled\":[", numbers.tokens, numbers.cached);
  for (const uint32_t n : numbers.filled) next(text), put(text, "%u", n);
  text += "],\"waiting\":[";
  for (const decode::Waiting& each : sequence.waiting) {
    numbers.waiting.push_back(uint32_t(each.positions.size()));
    next(text);
    each.empty() ? put(text, "[]") : put(text, "[[%lld,%zu]]", (long long)each.positions.front(), each.positions.size());
  }
  put(text, "],\"held\":%s,\"last\":[", numbers.gaps ? "true" : "false");
  for (const Held& each : held(session.caches, numbers.cached, numbers.filled)) {
    if (!session.caches.kept_floats(each.stage) || !each.tokens || session.caches.kept(each.stage, each.slot).tokens != each.tokens) continue;
    numbers.last.push_back(each);
    next(text);
    put(text, "{\"stage\":\"%s\",\"slot\":%u,\"tokens\":%u,\"sizes\":[", STAGES[each.stage], each.slot, each.tokens);
    for (uint32_t i = 0; i < header.kept[each.stage].count; i++) next(text), put(text, "%u", context.model_.model->kept[header.kept[each.stage].first + i]);
    text += "]}";
  }
  text += "],\"answer\":";
  context.answer_ < 0 ? put(text, "null") : put(text, "%lld", (long long)context.answer_);
  const el_sampling& s = context.sampling;
  put(text, ",\"end\":%zu,\"sampling\":{\"numbers\":{\"temperature\":%.17g,\"top_k\":%u,\"top_p\":%.17g,\"min_p\":%.17g,", context.end_,
      s.temperature, s.top_k, s.top_p, s.min_p);
  put(text, "\"repetition_penalty\":1.0,\"seed\":%llu,\"presence_penalty\":0.0,\"frequency_penalty\":0.0},\"bias\":[]},\"messages\":[",
      (unsigned long long)s.seed);
  for (const Message& each : context.messages_) {
    next(text);
    put(text, "{\"role\":\"%s\"", name_of(each.role));
    put_text(text, "content", each.content);
    text += '}';
  }
  put(text, "],\"turns\":%zu,\"said\":%zu,\"prefix\":%u}", context.turns_, context.said_, context.prefix_);

  ArraysWriter out(path, text, arrays_of(session, numbers));
  const auto put_ids = [&](const std::vector<int64_t>& ids) {
    std::vector<int32_t> narrow(ids.begin(), ids.end());
    out.put(narrow.data(), narrow.size() * 4);
  };
  put_ids(context.ids_);
  if (numbers.gaps)
    for (const auto& each : sequence.held) put_ids(each);
  for (const decode::Waiting& each : sequence.waiting) out.put(each.states.data(), each.states.size() * 4);
  for (const Held& each : numbers.last) {
    const std::vector<float>& rows = session.caches.kept(each.stage, each.slot).rows;
    out.put(rows.data(), rows.size() * 4);
  }
  for (const Held& each : held(session.caches, numbers.cached, numbers.filled)) {
    std::vector<uint8_t> rows(session.caches.row_bytes(each.stage) * each.tokens);
    session.caches.read_rows(each.stage, each.slot, 0, each.tokens, rows.data());
    exchange(session.caches, each, rows, &out, nullptr);
  }
  out.finish();
}

void Saved::read(Context& context, const char* path) {
  ArraysReader reader(path);
  const json::Value header = json::read(reader.text.data(), reader.text.size());
  const json::Value* format = header.find("format");
  if (!format || format->amount != 1) reader.wrong("a saved session of another format than 1");
  const App& app = context.app();
  el_session& session = context.session();
  decode::Sequence& own = context.decoder().sequence;
  const uint32_t depths = uint32_t(own.filled.size()), capacity = session.caches.capacity();
  const json::Value* owner = header.find("owner");
  const auto owned = [&](const char* name) {
    const json::Value* found = owner ? owner->find(name) : nullptr;
    return found ? found->string : std::string();
  };
  if (app.identity.empty() || owned("bundle") != app.identity)
    fail(EL_FORMAT, "%.120s: saved of another model (%.12s; this one is %.12s); open it with that one", path, owned("bundle").c_str(),
        app.identity.c_str());
  const ChosenPolicy& policy = *context.chosen_;
  const auto same = [&](const char* name, const std::string& wanted) {
    const std::string found = owned(name);
    if (found != wanted) fail(EL_FORMAT, "%.100s: saved with %s %.40s, this context has %.40s", path, name, found.c_str(), wanted.c_str());
  };
  same("exit", policy.exit), same("skipped_kv", policy.skipped), same("kv", policy.kv), same("depths", std::to_string(depths));

  Numbers numbers;
  numbers.tokens = whole(reader, header, "tokens", double(capacity) + 1);  // the last token of an answer need not be run
  numbers.cached = whole(reader, header, "cached", std::min(numbers.tokens, capacity));
  numbers.gaps = own.policy.gaps;
  const json::Value *filled = header.find("filled"), *waiting = header.find("waiting"), *last = header.find("last"), *gaps = header.find("held");
  if (!filled || filled->items.size() != depths || !waiting || waiting->items.size() != depths || !last || !gaps || gaps->truth != numbers.gaps)
    reader.wrong("its depths are not as this context has them");
  const auto integer = [&](const json::Value& value, double most) {
    if (value.kind != json::Value::number || !(value.amount >= 0 && value.amount <= most && value.amount == std::floor(value.amount)))
      reader.wrong("its header has a number out of range");
    return uint32_t(value.amount);
  };
  for (uint32_t depth = 0; depth < depths; depth++) {
    numbers.filled.push_back(integer(filled->items[depth], numbers.cached));
    uint32_t end = numbers.filled.back(), count = 0;
    for (const json::Value& piece : waiting->items[depth].items) {
      if (piece.items.size() != 2 || integer(piece.items[0], end) != end || depth == 0 || numbers.gaps) reader.wrong("its states wait for no depth");
      const uint32_t more = integer(piece.items[1], numbers.cached - end);
      end += more, count += more;
    }
    numbers.waiting_first.push_back(numbers.filled.back());
    numbers.waiting.push_back(count);
    bool whole_depth = end == numbers.cached || numbers.gaps;
    for (uint32_t before = 0; before < depth; before++) whole_depth |= end == numbers.filled[before];
    if (!whole_depth) reader.wrong("a depth lacks tokens");
  }
  const file::Header& file = context.model_.model->header();
  for (const json::Value& each : last->items) {
    const json::Value *stage = each.find("stage"), *sizes = each.find("sizes");
    uint32_t number = 0;
    while (stage && number < 3 && stage->string != STAGES[number]) number++;
    if (!stage || number == 3 || !sizes || sizes->items.size() != file.kept[number].count || sizes->items.empty())
      reader.wrong("it has rows of slots that are none");
    numbers.last.push_back({number, whole(reader, each, "slot", session.caches.slots(number) - 1.0), whole(reader, each, "tokens", numbers.cached)});
  }
  // Pieces of what waits are arrays of their own: Python has more than one where tokens left one by one.
  std::vector<Array> arrays;
  for (Array& array : arrays_of(session, numbers)) {
    if (array.name.compare(0, 8, "waiting.")) {
      arrays.push_back(std::move(array));
      continue;
    }
    const uint32_t depth = uint32_t(std::strtoul(array.name.c_str() + 8, nullptr, 10));
    const std::vector<json::Value>& parts = waiting->items[depth].items;
    for (size_t i = 0; i < parts.size(); i++)
      arrays.push_back({"waiting." + std::to_string(depth) + "." + std::to_string(i), "F32", {integer(parts[i].items[1], numbers.cached), array.shape[1]}});
  }
  reader.check(arrays);

  const auto take_ids = [&](uint32_t count) {
    std::vector<int32_t> narrow(count);
    reader.take(narrow.data(), size_t(count) * 4);
    return std::vector<int64_t>(narrow.begin(), narrow.end());
  };
  std::vector<int64_t> ids = take_ids(numbers.tokens);
  context.check_ids(ids.data(), ids.size());
  decode::Sequence fresh(own.policy, 0, own.width);
  fresh.cached = numbers.cached, fresh.filled = numbers.filled;
  for (uint32_t depth = 0; depth < depths && numbers.gaps; depth++) {
    fresh.held[depth] = take_ids(numbers.filled[depth]);
    for (size_t i = 0; i < fresh.held[depth].size(); i++)
      if (fresh.held[depth][i] < (i ? fresh.held[depth][i - 1] + 1 : 0) || fresh.held[depth][i] >= numbers.cached)
        reader.wrong("its rows are of no tokens in order");
  }
  for (uint32_t depth = 0; depth < depths; depth++) {
    std::vector<float> states(size_t(numbers.waiting[depth]) * own.width);
    reader.take(states.data(), states.size() * 4);
    for (uint32_t i = 0; i < numbers.waiting[depth]; i++)
      fresh.waiting[depth].push(numbers.waiting_first[depth] + i, states.data() + size_t(i) * own.width, own.width);
  }
  std::vector<std::vector<float>> kept;
  for (const Held& each : numbers.last) {
    kept.emplace_back(session.caches.kept_floats(each.stage));
    reader.take(kept.back().data(), kept.back().size() * 4);
  }
  for (const Held& each : held(session.caches, numbers.cached, numbers.filled)) {
    std::vector<uint8_t> rows(session.caches.row_bytes(each.stage) * each.tokens);
    exchange(session.caches, each, rows, nullptr, &reader);
    if (each.tokens) session.caches.write_rows(each.stage, each.slot, 0, each.tokens, rows.data());
    if (session.caches.kept_floats(each.stage)) session.caches.kept(each.stage, each.slot).tokens = 0;
  }
  reader.finish();
  for (size_t i = 0; i < kept.size(); i++)
    session.caches.kept(numbers.last[i].stage, numbers.last[i].slot) = {numbers.last[i].tokens, std::move(kept[i])};
  own.cached = fresh.cached;
  own.filled = std::move(fresh.filled), own.held = std::move(fresh.held), own.waiting = std::move(fresh.waiting);

  std::vector<Message> messages;
  if (const json::Value* said = header.find("messages"))
    for (const json::Value& each : said->items) {
      const json::Value *role = each.find("role"), *content = each.find("content");
      if (!role || !content || content->kind != json::Value::text || each.find("tool_calls") || messages.size() >= MOST_MESSAGES)
        reader.wrong("it has messages that turns cannot say");
      messages.push_back({role_of(role->string.c_str()), content->string});
    }
  const json::Value* answer = header.find("answer");
  context.prefix_ = whole(reader, header, "prefix", context.prefix_lm_ ? numbers.cached : 0);
  context.answer_ = answer && answer->kind == json::Value::number ? int64_t(integer(*answer, numbers.tokens)) : -1;
  context.end_ = whole(reader, header, "end", numbers.tokens);
  context.turns_ = whole(reader, header, "turns", double(messages.size()));
  context.said_ = whole(reader, header, "said", numbers.tokens);
  context.messages_ = std::move(messages);
  context.ids_ = std::move(ids);
  const json::Value* sampling = header.find("sampling");
  const json::Value* values = sampling ? sampling->find("numbers") : nullptr;
  const auto value = [&](const char* name, double least, double most, double usual) {
    const json::Value* found = values ? values->find(name) : nullptr;
    return found && found->amount >= least && found->amount <= most ? found->amount : usual;
  };
  el_sampling& s = context.sampling;
  s.temperature = value("temperature", 0, 1e30, 0), s.top_k = uint32_t(value("top_k", 0, 4294967295.0, 0));
  s.top_p = value("top_p", 1e-300, 1, 1), s.min_p = value("min_p", 0, 1, 0);
  const json::Value* seed = values ? values->find("seed") : nullptr;
  s.seed = seed ? std::strtoull(seed->string.c_str(), nullptr, 10) : 0;
}

void Context::save(const char* path) { Saved::write(*this, path); }

void Context::load(const char* path) {
  truncate(0);
  answer_ = -1, end_ = 0, messages_.clear();
  const std::lock_guard turn(model_.computing);
  reset();
  try {
    Saved::read(*this, path);
  } catch (...) {
    reset();
    ids_.clear(), messages_.clear();
    turns_ = said_ = end_ = 0, answer_ = -1;
    for (uint32_t stage = 0; stage < file::STAGES_WITH_CACHES; stage++)
      for (uint32_t slot = 0; slot < session_->caches.slots(stage); slot++) session_->caches.trim(stage, slot, 0);
    throw;
  }
}

}  // namespace edgeloop::context
