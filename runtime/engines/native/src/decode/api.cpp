// The C interface of decoders (edgeloop.h).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../guarded.h"
#include "decoder.h"

using namespace edgeloop;
using namespace edgeloop::decode;

namespace {

constexpr uint32_t MOST_TOKENS = 1u << 24;  // of a call

Decoder& given(el_decoder* decoder) {
  if (!decoder) fail(EL_USAGE, "decoder is NULL");
  return decoder->decoder;
}

const Decoder& given(const el_decoder* decoder) {
  if (!decoder) fail(EL_USAGE, "decoder is NULL");
  return decoder->decoder;
}

Sampler sampler_of(const el_sampling* sampling) {
  if (!sampling) fail(EL_USAGE, "sampling is NULL");
  check_struct(sampling->struct_bytes, sizeof *sampling, "el_sampling");
  const el_sampling& s = *sampling;
  if (!(s.temperature >= 0) || std::isinf(s.temperature))
    fail(EL_USAGE, "a temperature of %g, wanted 0 or more", s.temperature);
  if (!(s.top_p > 0 && s.top_p <= 1)) fail(EL_USAGE, "a top_p of %g, wanted more than 0 and at most 1", s.top_p);
  if (!(s.min_p >= 0 && s.min_p <= 1)) fail(EL_USAGE, "a min_p of %g, wanted 0 to 1", s.min_p);
  return Sampler({s.temperature, s.top_k, s.top_p, s.min_p, s.seed});
}

// A call of a decoder that computes, as those of a session are.
template <class Body>
int decoding(el_decoder* decoder, char* error, Body body) {
  el_session* session = decoder ? &decoder->decoder.passes.session : nullptr;
  return computing(session, error, [&](el_session&) { body(decoder->decoder); });
}

void check_sequence(const Decoder& decoder, const el_sequence* sequence) {
  if (!sequence) fail(EL_USAGE, "sequence is NULL");
  check_struct(sequence->struct_bytes, sizeof *sequence, "el_sequence");
  if (!sequence->filled || !sequence->held_counts || !sequence->waiting_counts)
    fail(EL_USAGE, "filled, held_counts or waiting_counts is NULL");
  if (sequence->depths != decoder.policy.rule.depths)
    fail(EL_USAGE, "a sequence of %u depths, wanted %u", sequence->depths, decoder.policy.rule.depths);
  if (sequence->width != decoder.sequence.width)
    fail(EL_USAGE, "states of %u numbers, wanted %u", sequence->width, decoder.sequence.width);
}

// Positions [count] of tokens before `end`, each behind the one before.
void check_positions(const int64_t* positions, uint32_t count, uint32_t end) {
  if (count && !positions) fail(EL_USAGE, "positions of %u tokens are NULL", count);
  for (uint32_t i = 0; i < count; i++)
    if (positions[i] < (i ? positions[i - 1] + 1 : 0) || positions[i] >= end)
      fail(EL_USAGE, "a token at position %lld of a sequence of %u, or out of order", (long long)positions[i], end);
}

void write_sequence(Decoder& decoder, const el_sequence& given) {
  Sequence& own = decoder.sequence;
  Sequence fresh(decoder.policy, own.number, own.width);
  const uint32_t capacity = decoder.passes.session.caches.capacity();
  if (given.cached > capacity) fail(EL_USAGE, "%u cached tokens, and the capacity is %u", given.cached, capacity);
  fresh.cached = given.cached;
  const int64_t *held = given.held, *positions = given.waiting_positions;
  const float* states = given.waiting;
  for (uint32_t depth = 0; depth < given.depths; depth++) {
    const uint32_t filled = given.filled[depth], count = given.waiting_counts[depth];
    if (filled > given.cached) fail(EL_USAGE, "%u rows of %u cached tokens", filled, given.cached);
    if (given.held_counts[depth] != (own.policy.gaps ? filled : 0))
      fail(EL_USAGE, "a slot of %u rows with positions for %u: the policy is another one", filled,
          given.held_counts[depth]);
    fresh.filled[depth] = filled;
    if (own.policy.gaps) {
      check_positions(held, filled, given.cached);
      if (filled) fresh.held[depth].assign(held, held + filled), held += filled;
    }
    if (count && !states) fail(EL_USAGE, "states of %u tokens are NULL", count);
    if (count && depth == 0) fail(EL_USAGE, "tokens wait for depth 0, which every token runs at once");
    check_positions(positions, count, given.cached);
    for (uint32_t i = 0; i < count; i++, states += own.width)
      fresh.waiting[depth].push(positions[i], states, own.width);
    if (count) positions += count;
  }
  own.cached = fresh.cached;
  own.filled = std::move(fresh.filled);
  own.held = std::move(fresh.held);
  own.waiting = std::move(fresh.waiting);
}

}  // namespace

int el_decoder_new(el_session* session, uint32_t sequence, const el_policy* policy, el_decoder** decoder, char* error) {
  return guarded(error, [&] {
    if (!session || !policy || !decoder) fail(EL_USAGE, "session, policy or decoder is NULL");
    check_struct(policy->struct_bytes, sizeof *policy, "el_policy");
    *decoder = new el_decoder(*session, sequence, *policy);
  });
}

void el_decoder_free(el_decoder* decoder) { delete decoder; }

int el_decoder_sample(el_decoder* decoder, const el_sampling* sampling, char* error) {
  return guarded(error, [&] { given(decoder).sampler = sampler_of(sampling); });
}

int el_decoder_next(el_decoder* decoder, int64_t token, const int64_t* ends, uint32_t ends_count, uint32_t count,
    int64_t* tokens, uint32_t* depths, uint32_t* made, char* error) {
  if (made) *made = 0;
  return decoding(decoder, error, [&](Decoder& d) {
    if (!made || (ends_count && !ends)) fail(EL_USAGE, "made or ends is NULL");
    if (count < 1 || count > MOST_TOKENS) fail(EL_USAGE, "%u tokens, wanted 1 to %u", count, MOST_TOKENS);
    for (uint32_t i = 0; i < count; i++) {
      d.run(token);
      if (depths) depths[i] = d.ran;
      if (!tokens) return;
      token = tokens[i] = d.choose();
      *made = i + 1;
      if (token == NO_TOKEN || std::find(ends, ends + ends_count, token) != ends + ends_count) return;
    }
  });
}

int el_decoder_logits(const el_decoder* decoder, float* logits, char* error) {
  return guarded(error, [&] {
    const Decoder& d = given(decoder);
    if (!logits) fail(EL_USAGE, "logits is NULL");
    if (!d.logits) fail(EL_USAGE, "no token was run, so that there are no logits");
    std::copy(d.logits, d.logits + d.passes.output(), logits);
  });
}

int el_choose(const el_sampling* sampling, const float* logits, uint32_t count, uint64_t position, int64_t* token,
    char* error) {
  return guarded(error, [&] {
    if (!logits || !token) fail(EL_USAGE, "logits or token is NULL");
    Sampler sampler = sampler_of(sampling);
    *token = sampler.choose(logits, count, position);
  });
}

int el_decoder_read(el_decoder* decoder, el_sequence* sequence, char* error) {
  return guarded(error, [&] {
    Decoder& d = given(decoder);
    check_sequence(d, sequence);
    d.settle();
    const Sequence& own = d.sequence;
    int64_t *held = sequence->held, *positions = sequence->waiting_positions;
    float* states = sequence->waiting;
    sequence->cached = own.cached;
    for (uint32_t depth = 0; depth < sequence->depths; depth++) {
      const Waiting& waiting = own.waiting[depth];
      sequence->filled[depth] = own.filled[depth];
      sequence->held_counts[depth] = own.policy.gaps ? uint32_t(own.held[depth].size()) : 0;
      sequence->waiting_counts[depth] = uint32_t(waiting.positions.size());
      if (held && own.policy.gaps) held = std::copy(own.held[depth].begin(), own.held[depth].end(), held);
      if (positions) positions = std::copy(waiting.positions.begin(), waiting.positions.end(), positions);
      if (states) states = std::copy(waiting.states.begin(), waiting.states.end(), states);
    }
  });
}

int el_decoder_write(el_decoder* decoder, const el_sequence* sequence, char* error) {
  return guarded(error, [&] {
    Decoder& d = given(decoder);
    check_sequence(d, sequence);
    d.settle();
    write_sequence(d, *sequence);
  });
}

int el_decoder_truncate(el_decoder* decoder, uint32_t tokens, char* error) {
  return guarded(error, [&] {
    given(decoder).settle();
    Sequence& own = decoder->decoder.sequence;
    if (tokens > own.cached) fail(EL_USAGE, "cannot go back to %u tokens of %u", tokens, own.cached);
    own.truncate(tokens);
  });
}

int el_decoder_counts(const el_decoder* decoder, el_counts* counts, char* error) {
  return guarded(error, [&] {
    const Decoder& d = given(decoder);
    if (!counts) fail(EL_USAGE, "counts is NULL");
    check_struct(counts->struct_bytes, sizeof *counts, "el_counts");
    if (counts->depths != d.policy.rule.depths)
      fail(EL_USAGE, "counts of %u depths, wanted %u", counts->depths, d.policy.rule.depths);
    const Counts& own = d.passes.counts;
    counts->tokens = own.tokens;
    counts->nanoseconds = own.nanoseconds;
    counts->block_calls = own.block_calls;
    counts->rows = own.rows;
    counts->decisions = d.sequence.decisions;
    counts->decide_nanoseconds = d.sequence.decide_nanoseconds;
    if (counts->block_nanoseconds)
      std::copy(own.block_nanoseconds.begin(), own.block_nanoseconds.end(), counts->block_nanoseconds);
    if (counts->depth_calls) std::copy(own.calls.begin(), own.calls.end(), counts->depth_calls);
  });
}
