// The lane engine for an app: texts and conversations that grow, and their answers, token by token. A part of
// edgeloop.h, whose rules hold: codes and one line of text, structs that say their size, one thread at a time but for
// el_context_stop. Text is UTF-8. What a model is to an app (its turns, its exit rules, what ends a text) is in its file.
#ifndef EDGELOOP_CONTEXT_H
#define EDGELOOP_CONTEXT_H

#include "edgeloop_text.h"
#include "edgeloop_tokens.h"
#include "edgeloop_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- what a model is to an app ------------------------------------------------------------------------------------

typedef enum el_turns {
  EL_TURNS_NONE = 0,       // the file has none: no conversations, or a template that turns cannot say
  EL_TURNS_ANY = 1,        // any order of roles
  EL_TURNS_ALTERNATE = 2,  // user and assistant in turn, the user first
} el_turns;

typedef struct el_about {
  uint32_t struct_bytes;     // set by the caller: sizeof(el_about)
  uint32_t turns;            // el_turns
  uint32_t system;           // of turns, 1: a system message may come first
  uint32_t thinking;         // of turns, 1: EL_RENDER_THINK and EL_RENDER_NO_THINK are two ways to ask for an answer
  uint32_t ends_count;       // end-of-text tokens
  uint32_t exits_count;      // exit rules that were calibrated
  const int64_t* ends;       // [ends_count]; pointers are valid while the model is open
  const char* const* exits;  // [exits_count]: their names, as el_context_options has them
  const char* name;          // of the model; "" where the file has none
} el_about;
EL_API int el_model_about(const el_model* model, el_about* about, char* error);

// The text of a conversation as the model's chat template writes it, by `flags` (el_render_flag). Like snprintf: *bytes is
// what there is, what fits `room` is written; `utf8` may be NULL with room 0. EL_USAGE, which names the rule, for what the
// template refuses or turns cannot say: tools, other roles, an order that it does not take.
EL_API int el_render(const el_model* model, const el_message* messages, uint32_t count, uint32_t flags, char* utf8,
                     size_t room, size_t* bytes, char* error);

// ---- contexts -----------------------------------------------------------------------------------------------------

// A text or a conversation: its tokens, and K and V of those that were run.
typedef struct el_context el_context;

typedef struct el_context_options {
  uint32_t struct_bytes;  // sizeof(el_context_options)
  uint32_t capacity;      // tokens that it may have; 0: the model's context_length
  uint32_t kv;            // el_kv
  uint32_t drafts;        // el_drafts: EL_DRAFTS_AUTO, the same tokens sooner, or EL_DRAFTS_NEVER
  uint32_t think;         // of conversations: 0, EL_RENDER_THINK or EL_RENDER_NO_THINK
  uint32_t answer_room;   // a conversation that leaves less room than so many tokens loses its oldest turns, but for a
                          // system message; 0: EL_USAGE instead
  const char* exit;       // where tokens stop, as `--exit`: "never", "depth:2", "latent:0.02", "gate:0.5", "probe", of routed
                          // models "router", "router:0.6". NULL: full depth, or the model's router
  const char* skipped_kv; // "exact", "propagate", "latest", "skip": as `--skipped-kv`. NULL: what a calibrated rule was
                          // measured with, else the first that the model can have
} el_context_options;

// `text`: of the model, or NULL: then only ids go in and come out. `options` NULL: as if all of it were 0. Both outlive it.
EL_API int el_context_new(el_model* model, const el_text* text, const el_context_options* options,
                          el_context** context, char* error);
EL_API void el_context_free(el_context* context);  // NULL is fine

// What comes behind the context; el_context_answer runs it. A text is encoded by itself, the first one of a context with
// what the tokenizer puts in front of texts.
EL_API int el_context_append(el_context* context, const int64_t* ids, size_t count, char* error);
EL_API int el_context_text(el_context* context, const char* utf8, size_t bytes, char* error);
// A message behind those of the conversation. An answer to one becomes the assistant's message by itself.
EL_API int el_context_say(el_context* context, const char* role, const char* content, char* error);
// The conversation is this; what it has in common with the one before is not run again. Of an answer that an app wants to
// be written otherwise (without what was thought, say) too.
EL_API int el_context_chat(el_context* context, const el_message* messages, uint32_t count, char* error);

typedef struct el_piece {
  uint32_t struct_bytes;
  uint32_t depth;         // depths that were run for the token
  int64_t token;
  const char* utf8;       // the text that the token completes, whole characters, not ended by a zero byte; valid in the call
  size_t bytes;           // of it; 0 while a character or a stop string is undecided
  uint64_t nanoseconds;   // that the token took; the first one with what was run before it
} el_piece;
// Called for each token of an answer, by the thread that asked for it; it may call el_context_stop and nothing else of the
// context. Not 0: the answer ends.
typedef int (*el_on_piece)(void* user, const el_piece* piece);

typedef enum el_answer_flag {
  EL_ANSWER_ENDLESS = 1,  // end-of-text tokens end nothing: for measurements
} el_answer_flag;

typedef struct el_answer_options {
  uint32_t struct_bytes;        // sizeof(el_answer_options)
  uint32_t max_tokens;          // 0: until the context is full
  uint32_t flags;               // el_answer_flag
  uint32_t stops_count;
  const char* const* stops;     // [stops_count]: texts that end an answer, and are cut off
  const el_sampling* sampling;  // NULL: as the last answer, at first greedy
} el_answer_options;

typedef enum el_why {
  EL_WHY_END = 0,      // an end-of-text token
  EL_WHY_STRING = 1,   // a stop string
  EL_WHY_LENGTH = 2,   // max_tokens
  EL_WHY_CONTEXT = 3,  // the context is full
  EL_WHY_STOPPED = 4,  // el_context_stop, or the callback
} el_why;

typedef struct el_answer {
  uint32_t struct_bytes;   // set by the caller: sizeof(el_answer)
  uint32_t why;            // el_why
  uint32_t tokens;         // of the answer
  uint32_t prompt_tokens;  // that were run before it: what was cached is not
  uint32_t forgotten;      // messages that made room
  uint32_t unused;
  uint64_t prompt_nanoseconds;  // of those; the first token is chosen then
  uint64_t first_nanoseconds;   // until the first text was there
  uint64_t nanoseconds;         // of all
} el_answer;

// Runs what is new and answers it, or goes on with the last answer where nothing is. `options` NULL: as if all of it were
// 0; `on_piece` and `answer` may be NULL. Behind an error, or EL_WHY_STOPPED, the context has the tokens that were given out.
EL_API int el_context_answer(el_context* context, const el_answer_options* options, el_on_piece on_piece, void* user,
                             el_answer* answer, char* error);
// The answer that is under way ends with EL_WHY_STOPPED, or else the next one does at once. From any thread, or from a
// signal handler.
EL_API void el_context_stop(el_context* context);

// ---- what a context holds -----------------------------------------------------------------------------------------

// Tokens and messages; either may be NULL.
EL_API int el_context_length(const el_context* context, size_t* tokens, size_t* messages, char* error);
// Like snprintf.
EL_API int el_context_ids(const el_context* context, int64_t* ids, size_t room, size_t* count, char* error);
// Message `number`, counted from 0: valid until the context changes.
EL_API int el_context_message(const el_context* context, size_t number, el_message* message, char* error);
// All but the first `tokens` tokens are forgotten, with the messages that are not whole any more.
EL_API int el_context_seek(el_context* context, size_t tokens, char* error);
// The last answer is forgotten, so that el_context_answer gives another one: with another seed, since a greedy one is
// the same. EL_USAGE where there is none at the end.
EL_API int el_context_again(el_context* context, char* error);
// Another context that goes on from here. What both have is in memory once, until one of them writes there.
EL_API int el_context_fork(el_context* context, el_context** other, char* error);
// The file of `edgeloop run --session`: tokens, messages, K and V. Written whole or not at all; loaded by a context of the
// same model, exit rule, skipped K and V, and el_kv. EL_FILE, EL_FORMAT: the context is empty then.
EL_API int el_context_save(el_context* context, const char* path, char* error);
EL_API int el_context_load(el_context* context, const char* path, char* error);

typedef struct el_context_stats {
  uint32_t struct_bytes;    // set by the caller: sizeof(el_context_stats)
  uint32_t depths;          // of the model; `exits` has room for so many
  uint64_t tokens, cached;  // of the context, and of those what was run
  uint64_t kv_bytes, shared_bytes;  // as in el_stats
  uint64_t generated;       // tokens of answers
  uint64_t drafts, drafts_right;    // tokens that were fed before they were final, and how many became it
  uint64_t* exits;          // [depths] or NULL: tokens of answers, by the depths that ran for them (1 first)
} el_context_stats;
EL_API int el_context_stats_read(const el_context* context, el_context_stats* stats, char* error);

#ifdef __cplusplus
}
#endif

#endif
