// The C interface of text (edgeloop_text.h).
#include <algorithm>

#include "../guarded.h"
#include "writer.h"

using namespace edgeloop;

struct el_writer {
  text::Writer writer;
};

int el_text_open(const el_model* model, el_text** text, char* error) {
  return guarded(error, [&] {
    if (!model || !text) fail(EL_USAGE, "model or text is NULL");
    *text = new el_text(*model->model);
  });
}

int el_text_read(const char* path, el_text** text, char* error) {
  return guarded(error, [&] {
    if (!path || !text) fail(EL_USAGE, "path or text is NULL");
    *text = new el_text(path);
  });
}

void el_text_close(el_text* text) { delete text; }

int el_encode(const el_text* text, const char* utf8, size_t bytes, uint32_t add_special, int64_t* ids, size_t room,
    size_t* count, char* error) {
  return guarded(error, [&] {
    if (!text || (!utf8 && bytes) || (!ids && room) || !count) fail(EL_USAGE, "text, utf8, ids or count is NULL");
    std::vector<uint32_t> found;
    text->text.encode({utf8 ? utf8 : "", bytes}, add_special != 0, found);
    std::copy_n(found.begin(), std::min(room, found.size()), ids);
    *count = found.size();
  });
}

int el_decode(const el_text* text, const int64_t* ids, size_t count, uint32_t skip_special, char* utf8, size_t room,
    size_t* bytes, char* error) {
  return guarded(error, [&] {
    if (!text || (!ids && count) || (!utf8 && room) || !bytes) fail(EL_USAGE, "text, ids, utf8 or bytes is NULL");
    std::string found;
    text->text.decode(ids, count, skip_special != 0, found);
    std::copy_n(found.begin(), std::min(room, found.size()), utf8);
    *bytes = found.size();
  });
}

int el_writer_new(const el_text* text, const int64_t* prompt, size_t prompt_count, const char* const* stops,
    uint32_t stops_count, el_writer** writer, char* error) {
  return guarded(error, [&] {
    if (!text || (!prompt && prompt_count) || (!stops && stops_count) || !writer)
      fail(EL_USAGE, "text, prompt, stops or writer is NULL");
    *writer = new el_writer{text::Writer(text->text, prompt, prompt_count, stops, stops_count)};
  });
}

void el_writer_free(el_writer* writer) { delete writer; }

namespace {

int written(const el_writer& writer, const char** utf8, size_t* bytes) {
  *utf8 = writer.writer.out.data();
  *bytes = writer.writer.out.size();
  return EL_OK;
}

}  // namespace

int el_writer_push(el_writer* writer, int64_t token, const char** utf8, size_t* bytes, uint32_t* stopped, char* error) {
  return guarded(error, [&] {
    if (!writer || !utf8 || !bytes) fail(EL_USAGE, "writer, utf8 or bytes is NULL");
    writer->writer.push(token);
    written(*writer, utf8, bytes);
    if (stopped) *stopped = writer->writer.stopped;
  });
}

int el_writer_end(el_writer* writer, const char** utf8, size_t* bytes, char* error) {
  return guarded(error, [&] {
    if (!writer || !utf8 || !bytes) fail(EL_USAGE, "writer, utf8 or bytes is NULL");
    writer->writer.end();
    written(*writer, utf8, bytes);
  });
}
