// The lane engine's text: tokens of a text, the text of tokens, and answers that come token by token. A part of edgeloop.h,
// whose rules hold.
#ifndef EDGELOOP_TEXT_H
#define EDGELOOP_TEXT_H

#include "edgeloop_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// el_text: the tokenizer in a model.lanes or a text.lanes file, used where it lies. Any thread may call its functions,
// several at a time. EL_USAGE: the file has none. Closed before the model is.
EL_API int el_text_open(const el_model* model, el_text** text, char* error);
// That of a text.lanes file, which a bundle for another engine has: a host of that engine needs no model here.
EL_API int el_text_read(const char* path, el_text** text, char* error);
EL_API void el_text_close(el_text* text);  // NULL is fine

// Text is UTF-8, with or without zero bytes. As with snprintf, *count or *bytes is what there is, and what of it fits into
// `room` is written; `ids` or `utf8` may be NULL with room 0.
// `add_special`, 1: with the tokens that stand around a text, often a first one. EL_USAGE: `utf8` is no UTF-8.
EL_API int el_encode(const el_text* text, const char* utf8, size_t bytes, uint32_t add_special, int64_t* ids,
                     size_t room, size_t* count, char* error);
// `skip_special`, 1: special tokens write nothing. Unknown ids never do. Bytes that are no character are U+FFFD.
EL_API int el_decode(const el_text* text, const int64_t* ids, size_t count, uint32_t skip_special, char* utf8,
                     size_t room, size_t* bytes, char* error);

typedef struct el_message {
  const char* role;     // "system", "user" or "assistant"
  const char* content;  // both ended by a zero byte
} el_message;

typedef enum el_render_flag {
  EL_RENDER_ANSWER = 1,    // with the opening of the assistant's turn
  EL_RENDER_THINK = 2,     // the model is asked to think first
  EL_RENDER_NO_THINK = 4,  // or not to
} el_render_flag;

// As el_render (edgeloop_context.h), for who has no el_model.
EL_API int el_text_render(const el_text* text, const el_message* messages, uint32_t count, uint32_t flags,
                          char* utf8, size_t room, size_t* bytes, char* error);
// The tokens that end a text.
EL_API int el_text_ends(const el_text* text, int64_t* ids, size_t room, size_t* count, char* error);

// An answer that comes token by token, as whole characters: together, what follows the prompt's text in that of both.
// Special tokens write nothing. Strings in `stops` [stops_count], zero-ended, end it: what counts is what the tokens write,
// special ones by their names; one may begin in the prompt, and what may become one is held back.
typedef struct el_writer el_writer;
// `prompt` [prompt_count]: the tokens before the answer. The text outlives it.
EL_API int el_writer_new(const el_text* text, const int64_t* prompt, size_t prompt_count, const char* const* stops,
                         uint32_t stops_count, el_writer** writer, char* error);
EL_API void el_writer_free(el_writer* writer);  // NULL is fine
// What `token` makes certain: `bytes` of UTF-8, valid until the next call of the writer. `stopped` (or NULL): 1: a stop
// string has come, and nothing follows.
EL_API int el_writer_push(el_writer* writer, int64_t token, const char** utf8, size_t* bytes, uint32_t* stopped,
                          char* error);
// What was held back, at the end of an answer.
EL_API int el_writer_end(el_writer* writer, const char** utf8, size_t* bytes, char* error);

#ifdef __cplusplus
}
#endif

#endif
