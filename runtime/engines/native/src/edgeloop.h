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
// Calls that run tokens through all depths, and choose what comes next, are in edgeloop_tokens.h; this includes all header files.
//
// A process may be forked. In the new one models and sessions go on, with threads that the first call makes; where another
// thread was computing with a model at that moment, what computes with it is EL_USAGE there.
#ifndef EDGELOOP_H
#define EDGELOOP_H

#include "edgeloop_context.h"
#include "edgeloop_text.h"
#include "edgeloop_tokens.h"
#include "edgeloop_types.h"
#include "edgeloop_update.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum el_stage { EL_PROLOGUE = 0, EL_BLOCK = 1, EL_EPILOGUE = 2 } el_stage;
// Of a number of K and V. In int8 a head's k, or v, of a token has a scale of its own, and q and the shares of tokens
// become whole numbers, too. In int4 each 16 numbers of it have one, and q and the shares stay floats.
typedef enum el_kv { EL_KV_F32 = 0, EL_KV_F16 = 1, EL_KV_I8 = 2, EL_KV_I4 = 3 } el_kv;
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
//   slots [B]: the slot of each lane, or NULL: first_slot + b. sequence · slots + depth mod slots of the block's
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
// scales, float32 [kv_heads] of k, then of v. In int4 k and v are [kv_heads][d / 2] bytes, as they lie in a block, with d
// the head_dim filled up to a multiple of 32, and scales float16 [kv_heads][d / 16].
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

// A node: one of the small steps that a stage is made of.
typedef struct el_node_time {
  uint32_t call;     // of a stage since el_profile, from 1; that of the head behind an epilogue is one of its own
  uint32_t role;     // what was called: 0 prologue, 1 block, 2 fill, 3 epilogue, 4 head
  uint32_t kind;     // see el_node_name
  uint32_t outputs;  // numbers that it gives for each row; 0 of what goes into a cache
  uint64_t nanoseconds;  // of the thread that it took longest
} el_node_time;

// From now on (`on`), or no more, every call of a stage of `model` writes down what its nodes cost, which makes small ones
// take longer. What was written down before is forgotten.
EL_API int el_profile(el_model* model, uint32_t on, char* error);
// Writes the first `room` nodes that were written down, in the order in which they were run; `count` is how many there are.
EL_API int el_profile_read(el_model* model, el_node_time* nodes, uint64_t room, uint64_t* count, char* error);
EL_API const char* el_node_name(uint32_t kind);  // NULL where there is no such kind

#ifdef __cplusplus
}
#endif

#endif
