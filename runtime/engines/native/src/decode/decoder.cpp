#include "decoder.h"

#include <algorithm>
#include <chrono>

#include "../error.h"
#include "measure.h"

namespace edgeloop::decode {

namespace {

// Of the numbers of a state, those of the first carry: what exit rules look at.
uint32_t first_carry(const Model& model) { return model.carries.count ? model.carries[0] : 0; }

}  // namespace

Decoder::Decoder(el_session& session, uint32_t number, const el_policy& policy)
    : policy(policy, first_carry(*session.model.model), session.model.model->header().caches[file::EPILOGUE].count > 0),
      sequence(this->policy, number, session.model.model->width()),
      passes(session, policy.depths) {
  if (number >= session.caches.sequences())
    fail(EL_USAGE, "sequence %u, wanted 0 to %u", number, session.caches.sequences() - 1);
  for (uint32_t depth = 0; depth < policy.depths; depth++) session.model.at_depth(depth, false);
  if (this->policy.skipped == EL_SKIPPED_PROPAGATE) session.model.at_depth(0, true);
}

void Decoder::check(const int64_t* ids, uint32_t count) const {
  const Caches& caches = passes.session.caches;
  const file::Header& header = passes.session.model.model->header();
  for (uint32_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= header.vocab_size)
      fail(EL_USAGE, "token id %lld, wanted 0 to %u", (long long)ids[i], header.vocab_size - 1);
  if (count > caches.capacity() - sequence.cached)
    fail(EL_USAGE, "%u cached tokens and %u new ones, and the capacity is %u", sequence.cached, count,
        caches.capacity());
}

const float* Decoder::run(int64_t id) {
  check(&id, 1);
  const auto begin = std::chrono::steady_clock::now();
  if (pipeline) {
    logits = pipeline->step(id);
    ran = pipeline->ran();
  } else {
    run_alone(id);
  }
  const auto spent = std::chrono::steady_clock::now() - begin;
  passes.counts.tokens++;
  passes.counts.nanoseconds += uint64_t(std::chrono::nanoseconds(spent).count());
  return logits;
}

void Decoder::run_alone(int64_t id) {
  token_.start(sequence, id, sequence.cached);
  drive();
  sequence.finished(token_.position() + 1);
  logits = passes.logits(0);
  ran = token_.ran();
}

void Decoder::catch_up() {
  settle();
  token_.start_waiting(sequence);
  drive();
}

void Decoder::drive() {
  try {
    while (!token_.done()) passes.advance(tokens_);
  } catch (...) {
    token_.cancel();
    sequence.truncate(token_.position());
    throw;
  }
}

void Decoder::draft(const DraftOptions& options) {
  settle();
  if (options.kind == DraftOptions::NEVER) return pipeline.reset();
  if (!pipeline) {
    const Rule& rule = policy.rule;
    auto& all = passes.session.model.drafts;
    const auto [found, fresh] = all.try_emplace({uint32_t(rule.kind), rule.depths}, rule.depths, rule.stop);
    // What calls cost is no matter of the rule.
    const auto other = std::find_if(all.begin(), all.end(),
        [&, key = found->first](const auto& each) { return each.first != key && each.first.second == rule.depths; });
    if (fresh) found->second.costs = other == all.end() ? measure(passes.session, rule.depths) : other->second.costs;
    pipeline = std::make_unique<Pipeline>(passes, sequence, sampler, found->second);
  }
  pipeline->options = options;
}

}  // namespace edgeloop::decode
