// The lane engine: runs a model.lanes file (format.h). A C interface, without global state: many models and sessions may
// live in one process.
//
// A model is a file, mapped read-only, with its threads. A session has the K and V of some sequences, in slots: one for
// each (sequence, depth) in the caches of the block, one for each sequence in those of the prologue and epilogue. How
// many tokens a slot holds is the caller's to know: calls say it (`cached`), and tokens that are no longer wanted are
// overwritten. Depth-pipelined decoding, prefill in chunks, many users: all are calls over lanes.
//
// A row's result depends on its own input, its position, its depth and what its slot holds: not on the other rows of a
// call, on how a text is cut into calls, on the number of threads or on the processor's instructions.
//
// Every function that can fail returns an el_code, and writes one line of text, ended by a zero byte, into `error`, which
// is EL_ERROR_SIZE bytes or NULL. Nothing else is changed then, but for rows of K and V at and behind `cached`.
// No exception leaves a function, and none aborts. Pointers to what a call needs none of may be NULL.
//
// Functions of one session are called by one thread at a time, el_stop by any; el_copy is a function of both of its
// sessions. Sessions of one model may be called by several: what computes takes turns, and memory of K and V that slots of
// different sessions share is counted and copied safely. A model is closed after its sessions.
//
// A process may be forked. In the new one models and sessions go on, with threads that the first call makes; where another
// thread was computing with a model at that moment, what computes with it is EL_USAGE there.
#ifndef EDGELOOP_H
#define EDGELOOP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define EL_API __declspec(dllexport)
#else
#define EL_API __attribute__((visibility("default")))
#endif

#define EL_ABI 2  // changes when a caller that was compiled with another header would be wrong
#define EL_ERROR_SIZE 256

typedef struct el_model el_model;
typedef struct el_session el_session;

typedef enum el_code {
  EL_OK = 0,
  EL_FILE = 1,     // the file cannot be opened or read
  EL_FORMAT = 2,   // it is no model.lanes file, one of another version, truncated or altered
  EL_USAGE = 3,    // an argument is not what it may be
  EL_MEMORY = 4,   // there is no room for it
  EL_STOPPED = 5,  // el_stop was called
} el_code;

typedef enum el_stage { EL_PROLOGUE = 0, EL_BLOCK = 1, EL_EPILOGUE = 2 } el_stage;
// Of a number of K and V. In int8 a head's k, or v, of a token has a scale of its own, and q and the shares of tokens
// become whole numbers, too.
typedef enum el_kv { EL_KV_F32 = 0, EL_KV_F16 = 1, EL_KV_I8 = 2 } el_kv;
typedef enum el_activations {
  EL_ACTIVATIONS_INT8 = 0,   // inputs of quantized matrices become whole numbers of 1/127 of the largest of their group
  EL_ACTIVATIONS_FLOAT = 1,  // they stay floats
} el_activations;

EL_API uint32_t el_abi(void);  // EL_ABI of the library
// The name of the kernels that a model is opened with here unless it asks for others; NULL where EDGELOOP_KERNELS names
// none that this processor runs.
EL_API const char* el_kernels(void);

// ---- models -------------------------------------------------------------------------------------------------------

typedef struct el_open_options {
  uint32_t struct_bytes;  // sizeof(el_open_options)
  uint32_t activations;   // el_activations
  uint32_t threads;       // at most so many compute, the caller's included; 0: as many as there are cores
  uint32_t pinned;        // of `cpus`; 0: threads are not pinned. The caller's thread is never pinned
  const int32_t* cpus;    // [pinned]: thread i > 0 runs on cpus[i % pinned] only; EL_USAGE for what the process may not use
  const char* kernels;    // "portable", "avx2", "avx512" …; NULL: EDGELOOP_KERNELS, or the best that the processor has
} el_open_options;

typedef struct el_info {
  uint32_t struct_bytes;  // set by the caller: sizeof(el_info)
  uint32_t depths;        // of the schedule
  uint32_t any_depth;     // 1: calls may name depths beyond it
  uint32_t width;         // D of a state: all carries
  uint32_t output;        // the numbers of a row of logits
  uint32_t vocab_size;
  uint32_t context_length;
  uint32_t token_types;
  uint32_t shares_kv;  // 1: the depths of a sequence share one slot
  uint32_t kept_rows;  // rows that Shift keeps, in the block
  uint32_t threads;
  uint32_t activations;
  uint64_t file_bytes;
  const char* kernels;  // the name of those that are used; valid while the model is open
} el_info;

// `options` NULL: int8 activations, all cores, the best kernels.
EL_API int el_open(const char* path, const el_open_options* options, el_model** model, char* error);
EL_API void el_close(el_model* model);  // NULL is fine
EL_API int el_model_info(const el_model* model, el_info* info, char* error);

// ---- sessions -----------------------------------------------------------------------------------------------------

typedef struct el_session_options {
  uint32_t struct_bytes;  // sizeof(el_session_options)
  uint32_t sequences;     // at least 1
  uint32_t capacity;      // tokens that a sequence may have, 1 … the model's context_length
  uint32_t slots;         // a sequence's, in the block's caches: 1 … depths; the deepest depths share the last one.
                          // 0: one for each depth, or 1 where depths share K and V
  uint32_t kv;            // el_kv
} el_session_options;

// Memory is taken as slots fill up.
EL_API int el_session_new(el_model* model, const el_session_options* options, el_session** session, char* error);
EL_API void el_session_free(el_session* session);  // NULL is fine

// The call that runs, or else the next one, returns EL_STOPPED. From any thread, or from a signal handler.
EL_API void el_stop(el_session* session);

// ---- calls --------------------------------------------------------------------------------------------------------

// B lanes: tokens of a sequence at a depth. Arrays are as runtime/engines/backend.py has them, with
//   depth [B]: whose deltas apply; deeper than the schedule where any_depth
//   cached [B]: tokens in the lane's slot, which stay; new ones become rows cached …
//   tokens [B]: new tokens, 0: an idle lane
//   positions [B][stride]: true positions, below context_length
//   slots [B]: the slot of each lane, or NULL: first_slot + b. sequence · slots + min(depth, slots − 1) of the block's
// States, ids and types have `padded` rows for each lane, of which the first `tokens` count; or, where it is 0, the
// valid rows alone, lane after lane. Two lanes that write K and V, so that are not idle, nor of a deeper depth where
// depths share them, have different slots.
typedef struct el_lanes {
  uint32_t struct_bytes;  // sizeof(el_lanes)
  uint32_t count;         // B
  uint32_t stride;        // of positions: at least the most tokens of a lane
  uint32_t padded;        // 0, or S: at least the most tokens of a lane
  uint32_t first_slot;
  uint32_t unused;
  const int64_t* depth;
  const int32_t* cached;
  const int32_t* tokens;
  const int64_t* positions;
  const int32_t* slots;
} el_lanes;

// ids, types [rows] → state [rows][width]; padded rows become zeros. types NULL, or of a model without them: all 0.
EL_API int el_prologue(el_session* session, const el_lanes* lanes, const int64_t* ids, const int64_t* types,
                       float* state, char* error);
// state [rows][width] → out [rows][width], which may be the same memory; padded rows become zeros.
EL_API int el_block(el_session* session, const el_lanes* lanes, const float* state, float* out, char* error);
// K and V of every layer of the block, made of `state` as if it entered each; for tokens that skip a depth.
EL_API int el_fill(el_session* session, const el_lanes* lanes, const float* state, char* error);
// Every row goes through the epilogue's layers; logits [wanted][output] are of the rows `rows` [wanted] of the state.
EL_API int el_epilogue(el_session* session, const el_lanes* lanes, const float* state, const int64_t* rows,
                       uint32_t wanted, float* logits, char* error);
// One lane of the prologue through all stages, `depths` of the block (0: those of the schedule) in their own slots of
// the sequence `first_slot`. logits [output] are of its last token; NULL: none are wanted.
EL_API int el_prompt(el_session* session, const el_lanes* lanes, const int64_t* ids, uint32_t depths, float* logits,
                     char* error);

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
  uint32_t unused;
  int64_t token;        // without a text the one that is run; afterwards the one that is chosen, or −1
  uint32_t depths;      // that it ran
  int32_t code;         // el_code: of this turn
  const float* logits;  // [output] where the host chooses or token is −1, valid until the next call; else NULL
  char* error;          // [EL_ERROR_SIZE] or NULL: a line, where `code` is not EL_OK
} el_turn;

typedef struct el_batch el_batch;
EL_API int el_batch_new(el_session* session, el_batch** batch, char* error);
EL_API void el_batch_free(el_batch* batch);  // NULL is fine
// A token, or a text, of each of `count` decoders of the session, of different sequences: their rows ride in the same passes. Each gets
// what el_decoder_next gives it. What goes wrong is said in the turns that it is about, whose sequences are as before; what
// is returned is about all of them: an argument, or EL_STOPPED, after which no turn counts. `calls`, `rows`: of the block,
// that were made; may be NULL.
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

// What calls cost is measured the first time that a model drafts, which takes some 6 ms, or as long as a few tokens.
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
  double* least;            // [depths] or NULL: the odds from which a draft is fed behind a token that has run 0, 1 … depths
  double* acceptance;       // [depths − 1][EL_MARGINS + 1] or NULL: by how sure a depth is, less sure first; then in all
} el_draft_report;
EL_API int el_decoder_drafts(const el_decoder* decoder, el_draft_report* report, char* error);

// ---- what slots hold ----------------------------------------------------------------------------------------------

// A slot of `cached` tokens goes back to `tokens`: 1 if it still holds what those see. Always, without windows.
EL_API int el_can_truncate(const el_session* session, uint32_t cached, uint32_t tokens);
// Memory behind the first `tokens` of a slot is given back.
EL_API int el_trim(el_session* session, uint32_t stage, uint32_t slot, uint32_t tokens, char* error);
// Rows `first` … first + count − 1 of a slot of `source` become rows `to` … of a slot of `session`, of the same model
// and el_kv. They may be one session, and one slot if the rows do not overlap. Rows that have left a window are left out.
// So a sequence is forked, and a token's K and V at one depth are given to a deeper one. Count 0 copies no rows.
// Where `to` and `first` are multiples of 16, nothing is moved: the slots share memory, 16 rows a block, and a block is
// copied when one of them is written to. What a slot holds is its own all the same.
// A row that Shift keeps goes along if it is that of the last row copied.
EL_API int el_copy(el_session* session, uint32_t stage, uint32_t slot, uint32_t to, const el_session* source,
                   uint32_t source_slot, uint32_t first, uint32_t count, char* error);
// Bytes of a row of one slot: for each cache of the stage k [kv_heads][head_dim], then v, in el_kv; of int8 then their
// scales, float32 [kv_heads] of k, then of v.
EL_API size_t el_row_bytes(const el_session* session, uint32_t stage);
// Rows as such bytes, [count][el_row_bytes]; rows that have left a cache's window are zeros. To write them makes room.
EL_API int el_read_rows(const el_session* session, uint32_t stage, uint32_t slot, uint32_t first, uint32_t count,
                        void* rows, char* error);
EL_API int el_write_rows(el_session* session, uint32_t stage, uint32_t slot, uint32_t first, uint32_t count,
                         const void* rows, char* error);
// What Shift keeps of a slot: the rows side by side, el_kept_floats of them, and of how many tokens they are the last
// row; 0 tokens: there are none. A call whose `cached` is another number of tokens, and not 0, is an error.
EL_API size_t el_kept_floats(const el_session* session, uint32_t stage);
EL_API int el_read_kept(const el_session* session, uint32_t stage, uint32_t slot, uint32_t* tokens, float* rows,
                        char* error);
EL_API int el_write_kept(el_session* session, uint32_t stage, uint32_t slot, uint32_t tokens, const float* rows,
                         char* error);

// ---- what it costs ------------------------------------------------------------------------------------------------

typedef struct el_stats {
  uint32_t struct_bytes;  // set by the caller: sizeof(el_stats)
  uint32_t threads;       // that computed in the last call
  uint64_t calls;         // of the session
  uint64_t rows;          // that its calls computed, a token once for each stage and depth
  uint64_t kv_bytes;      // of its slots, what several of them share once
  uint64_t shared_bytes;  // of kv_bytes, what slots of other sessions share
  uint64_t scratch_bytes; // of the model's threads
} el_stats;

EL_API int el_session_stats(const el_session* session, el_stats* stats, char* error);

#ifdef __cplusplus
}
#endif

#endif
