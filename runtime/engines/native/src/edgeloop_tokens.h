// The lane engine's whole tokens: decoders of one sequence, of many, and with drafts. A part of edgeloop.h, whose rules hold.
#ifndef EDGELOOP_TOKENS_H
#define EDGELOOP_TOKENS_H

#include "edgeloop_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- whole tokens -------------------------------------------------------------------------------------------------

// A decoder runs tokens of one sequence of a session, one after the other, through all depths that its policy sends them
// to, and chooses what comes next: one call a token, or for several. It knows what the slots of its sequence hold; a host
// that runs a prompt by other calls, or copies rows, tells it so (el_decoder_write).
typedef struct el_decoder el_decoder;

typedef enum el_rule {
  EL_RULE_NEVER = 0,   // every token runs every depth
  EL_RULE_DEPTH = 1,   // `stop` depths; the others stop there at the latest
  EL_RULE_LATENT = 2,  // how far a depth moves the state, relative to its length: at most the threshold
  EL_RULE_GATE = 3,    // the exit gate: at least the threshold
  EL_RULE_PROBE = 4,   // a linear probe a depth: at least the threshold
  EL_RULE_EXPERT = 5,  // a router, expert choice: at each depth the token goes on or ends
  EL_RULE_TOKEN = 6,   // a router, token choice: where it ends is said at the beginning
} el_rule;
// What becomes of K and V of the depths that a token did not run.
typedef enum el_skipped {
  EL_SKIPPED_NONE = 0,       // none are missing: every depth is run, or one slot serves all
  EL_SKIPPED_EXACT = 1,      // states wait, and run with the next token that goes deeper
  EL_SKIPPED_PROPAGATE = 2,  // they are filled in from the state that the token left with
  EL_SKIPPED_LATEST = 3,     // they are those of the last depth that it ran
  EL_SKIPPED_SKIP = 4,       // deeper depths do not see the token
} el_skipped;
typedef enum el_squash {
  EL_SQUASH_SIGMOID = 0,
  EL_SQUASH_TANH = 1,
  EL_SQUASH_NONE = 2,
  EL_SQUASH_SOFTMAX = 3,
} el_squash;

// D: the width of the first carry. Numbers are copied.
typedef struct el_policy {
  uint32_t struct_bytes;  // sizeof(el_policy)
  uint32_t rule;          // el_rule
  uint32_t depths;        // how often the loop runs
  uint32_t stop;          // depths that a token runs at most: 1 … depths
  uint32_t skipped;       // el_skipped
  uint32_t shared;        // 1: one slot serves all depths, and a token's row is its position
  uint32_t squash;        // el_squash, of routers
  uint32_t gated;         // of routers, 1: the score is a gate
  uint32_t everyone;      // of routers, 1: all go on, whatever the score
  uint32_t hidden_count;  // of routers, hidden layers, the last of which is that of deeper depths too; 0: none
  uint32_t hidden_width;  // their numbers, H
  float temperature;      // of routers
  float alpha;            // of routers: what the score is multiplied with
  const float* thresholds;        // LATENT, GATE, PROBE [depths − 1]; EXPERT [1]
  const float* weight;            // GATE [D]; PROBE [depths − 1][D]; routers [depths][D or H]
  const float* bias;              // GATE [1]; PROBE [depths − 1]; TOKEN [depths]
  const float* hidden;            // routers [hidden_count][H][D]
  const float* auxiliary;         // EXPERT [depths][D or H], which judges in place of `weight`; or NULL
  const float* auxiliary_hidden;  // EXPERT [hidden_count][H][D]
  const float* capacity;          // EXPERT [depths]: of 1 or more, everyone goes on
} el_policy;

typedef struct el_sampling {
  uint32_t struct_bytes;  // sizeof(el_sampling)
  uint32_t top_k;         // 0: off
  double temperature;     // 0: the largest logit, and nothing below counts
  double top_p;           // above 0; 1: off
  double min_p;           // 0: off
  uint64_t seed;
} el_sampling;

// `sequence`: of the session's, empty. The session outlives its decoders.
EL_API int el_decoder_new(el_session* session, uint32_t sequence, const el_policy* policy, el_decoder** decoder,
                          char* error);
EL_API void el_decoder_free(el_decoder* decoder);  // NULL is fine
// How tokens are chosen from now on; at first greedily.
EL_API int el_decoder_sample(el_decoder* decoder, const el_sampling* sampling, char* error);
// Runs `token`, chooses the next one, runs that, up to `count` times or until one of `ends` [ends_count] was chosen. The
// i-th choice becomes tokens[i], −1 where logits leave none; depths[i] are those that the token before it ran. `made`:
// choices, also when the call ends with an error. `tokens` NULL: `token` is run and nothing is chosen. `depths` may be NULL.
EL_API int el_decoder_next(el_decoder* decoder, int64_t token, const int64_t* ends, uint32_t ends_count, uint32_t count,
                           int64_t* tokens, uint32_t* depths, uint32_t* made, char* error);
// Of the token that was run last: [output].
EL_API int el_decoder_logits(const el_decoder* decoder, float* logits, char* error);
// What el_decoder_next chooses from `logits` [count] for `position`.
EL_API int el_choose(const el_sampling* sampling, const float* logits, uint32_t count, uint64_t position, int64_t* token,
                     char* error);

// What a decoder knows of its sequence. `held` and `waiting_positions` lie depth after depth, so do the states.
typedef struct el_sequence {
  uint32_t struct_bytes;       // sizeof(el_sequence)
  uint32_t depths;             // of the policy
  uint32_t cached;             // tokens that were run
  uint32_t width;              // of a state
  uint32_t* filled;            // [depths]: tokens whose K and V are in the depth's slot
  uint32_t* held_counts;       // [depths]: as `filled`, where slots lack tokens (EL_SKIPPED_SKIP); else 0
  uint32_t* waiting_counts;    // [depths]: states that wait for the depth
  int64_t* held;               // the positions of a slot's rows
  int64_t* waiting_positions;  // of those that wait, the oldest first
  float* waiting;              // their states [width]
} el_sequence;

// Fills in `cached` and the counts; and, where they are not NULL, `held`, `waiting_positions` and `waiting`, which have
// room for as many as the counts said.
EL_API int el_decoder_read(el_decoder* decoder, el_sequence* sequence, char* error);
// The slots hold this now.
EL_API int el_decoder_write(el_decoder* decoder, const el_sequence* sequence, char* error);
// All but the first `tokens` tokens are forgotten: see el_can_truncate.
EL_API int el_decoder_truncate(el_decoder* decoder, uint32_t tokens, char* error);

typedef struct el_counts {
  uint32_t struct_bytes;  // sizeof(el_counts)
  uint32_t depths;        // of the policy
  uint64_t tokens;
  uint64_t nanoseconds;   // within el_decoder_next
  uint64_t block_calls;
  uint64_t rows;                // that those calls computed
  uint64_t decisions;           // to stop or to go on
  uint64_t decide_nanoseconds;  // that they took
  uint64_t* block_nanoseconds;  // [depths] or NULL: of the calls of the block at each depth
  uint64_t* depth_calls;        // [depths] or NULL
} el_counts;
EL_API int el_decoder_counts(const el_decoder* decoder, el_counts* counts, char* error);

// ---- whole tokens of many sequences -------------------------------------------------------------------------------

typedef enum el_chooses {
  EL_CHOOSES_HOST = 0,     // the next token, from the logits that it is given
  EL_CHOOSES_DECODER = 1,
  EL_CHOOSES_NOBODY = 2,   // a text that goes on
} el_chooses;

// What a decoder of a batch is asked for, and what becomes of it: a token, or a piece of a text. Tokens of texts run every
// depth; no router may send them, nothing of the sequence wait, and each depth have a slot unless the model shares it.
typedef struct el_turn {
  uint32_t struct_bytes;  // sizeof(el_turn)
  uint32_t chooses;       // el_chooses
  el_decoder* decoder;
  const int64_t* text;  // ids [text_count], or NULL
  uint32_t text_count;
  uint32_t most;        // tokens that it may run in the call; 0 as 1
  int64_t token;        // without a text the one that is run; afterwards the one that was chosen last, or −1
  uint32_t depths;      // that the one before it ran
  int32_t code;         // el_code: of this turn
  const float* logits;  // [output] where the host chooses or token is −1, valid until the next call; else NULL
  char* error;          // [EL_ERROR_SIZE] or NULL: a line, where `code` is not EL_OK
  const int64_t* ends;  // [ends_count]: tokens that nothing is run behind
  uint32_t ends_count;
  uint32_t made;        // tokens that were run
  int64_t* tokens;      // [most] or NULL, where `most` is above 1: those that were chosen
  uint32_t* ran;        // [most]: depths that the tokens before these ran
} el_turn;

typedef struct el_batch el_batch;
EL_API int el_batch_new(el_session* session, el_batch** batch, char* error);
EL_API void el_batch_free(el_batch* batch);  // NULL is fine
// A token, or a text, of each of `count` decoders of the session, of different sequences: their rows ride in the same passes. Each gets
// what el_decoder_next gives it. What goes wrong is said in the turns that it is about, whose sequences are as before; what
// is returned is about all of them: an argument, or EL_STOPPED, after which no turn counts. `calls`, `rows`: of the block,
// that were made; may be NULL. As long as all decoders choose for themselves and none has come to its end, a token more of each
// follows, up to the least `most`; what goes wrong then ends the call, and whoever wants to know of it calls again.
EL_API int el_batch_next(el_batch* batch, el_turn* turns, uint32_t count, uint64_t* calls, uint64_t* rows, char* error);

// ---- drafts -------------------------------------------------------------------------------------------------------

// With drafts, el_decoder_next feeds tokens before they are final: what followed in the text when its newest tokens stood
// there before, and what a shallow depth predicts. They run beside the tokens before them, so that weights are read once
// for all. What it returns is the same, bit for bit: drafts that turn out wrong are taken back. Other calls of the decoder
// take back all of them first.
typedef enum el_drafts {
  EL_DRAFTS_AUTO = 0,    // where they pay, by what calls cost here and how often drafts were right
  EL_DRAFTS_NEVER = 1,   // as at first
  EL_DRAFTS_ALWAYS = 2,  // as `depth`, `judges` and `lookups` say: for tests and measurements
} el_drafts;

typedef struct el_drafting {
  uint32_t struct_bytes;  // sizeof(el_drafting)
  uint32_t kind;          // el_drafts
  uint32_t depth;         // ALWAYS: whose prediction is fed; from the last one on: none
  uint32_t judges;        // ALWAYS, 1: deeper depths replace what was fed
  uint32_t lookups;       // ALWAYS: tokens that are fed from the text in a pass at most
  uint32_t known;         // for measurements: tokens of `truth`; 0: none
  const int64_t* truth;   // [known]: what a shallow depth predicts for each position, whatever it does predict;
  const uint8_t* wrong;   // [known]: 1: another token than that
} el_drafting;

// What calls cost is measured the first time that a model drafts, which takes some 6 ms, or as long as four tokens.
EL_API int el_decoder_draft(el_decoder* decoder, const el_drafting* drafting, char* error);
// The text is ids [count], of which the decoder has run the first: where drafts are looked up. What it runs is added.
EL_API int el_decoder_text(el_decoder* decoder, const int64_t* ids, uint32_t count, char* error);

#define EL_COST_ROWS 8
#define EL_MARGINS 7
// `tokens` to `predicted_right`: of this decoder since drafts began. The rest is of all sessions of the model.
typedef struct el_draft_report {
  uint32_t struct_bytes;    // sizeof(el_draft_report)
  uint32_t depths;          // of the policy
  uint32_t sampled;         // 1: `acceptance` is that of sampling, 0: of greedy decoding
  uint32_t unused;
  uint64_t tokens;          // that became final
  uint64_t passes;          // that they took
  uint64_t reads;           // rows that were read out beside those of final tokens
  uint64_t looked_up;       // drafts from the text that became final or were refuted, and how many became final
  uint64_t looked_up_right;
  uint64_t predicted;       // drafts of a shallow depth, and how many of them became final
  uint64_t predicted_right;
  double saved;             // nanoseconds, by the table of costs
  double* costs;            // [3][EL_COST_ROWS] or NULL: nanoseconds of prologue, block, epilogue with choice, by rows
  uint32_t* threads;        // [EL_COST_ROWS] or NULL: that compute a call of the block, by rows
  double* least;            // [depths] or NULL: the odds from which a draft is fed behind a token that has run 0, 1 … depths
  double* acceptance;       // [depths − 1][EL_MARGINS + 1] or NULL: by how sure a depth is, less sure first; then in all
} el_draft_report;
EL_API int el_decoder_drafts(const el_decoder* decoder, el_draft_report* report, char* error);

#ifdef __cplusplus
}
#endif

#endif
