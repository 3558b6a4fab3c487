// The C interface of drafts (edgeloop.h).
#include "../guarded.h"
#include "decoder.h"

using namespace edgeloop;
using namespace edgeloop::decode;

namespace {

template <class Struct>
void check_given(const el_decoder* decoder, const Struct* given, const char* name) {
  if (!decoder || !given) fail(EL_USAGE, "decoder or %s is NULL", name);
}

void check_drafting(const Decoder& decoder, const el_drafting& drafting) {
  check_struct(drafting.struct_bytes, sizeof drafting, "el_drafting");
  if (drafting.kind > EL_DRAFTS_ALWAYS) fail(EL_USAGE, "there is no el_drafts %u", drafting.kind);
  if (drafting.known > decoder.passes.session.caches.capacity())
    fail(EL_USAGE, "%u tokens are known, and the capacity is %u", drafting.known, decoder.passes.session.caches.capacity());
  if (drafting.known && (!drafting.truth || !drafting.wrong)) fail(EL_USAGE, "truth or wrong is NULL");
}

// Ids [count] of tokens that the model has.
void check_ids(const Decoder& decoder, const int64_t* ids, uint32_t count) {
  const uint32_t vocab = decoder.passes.session.model.model->header().vocab_size;
  for (uint32_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocab) fail(EL_USAGE, "token id %lld, wanted 0 to %u", (long long)ids[i], vocab - 1);
}

}  // namespace

int el_decoder_draft(el_decoder* decoder, const el_drafting* drafting, char* error) {
  return computing(decoder ? &decoder->decoder.passes.session : nullptr, error, [&](el_session&) {
    check_given(decoder, drafting, "drafting");
    Decoder& d = decoder->decoder;
    check_drafting(d, *drafting);
    check_ids(d, drafting->truth, drafting->known);
    d.draft({DraftOptions::Kind(drafting->kind), drafting->depth, drafting->judges, drafting->lookups});
    if (!d.pipeline) return;
    d.pipeline->truth.assign(drafting->truth, drafting->truth + drafting->known);
    d.pipeline->wrong.assign(drafting->wrong, drafting->wrong + drafting->known);
  });
}

int el_decoder_text(el_decoder* decoder, const int64_t* ids, uint32_t count, char* error) {
  return computing(decoder ? &decoder->decoder.passes.session : nullptr, error, [&](el_session&) {
    if (!decoder || (count && !ids)) fail(EL_USAGE, "decoder or ids is NULL");
    Decoder& d = decoder->decoder;
    check_ids(d, ids, count);
    if (d.pipeline) d.pipeline->begin(ids, count);
  });
}

int el_decoder_drafts(const el_decoder* decoder, el_draft_report* report, char* error) {
  return computing(decoder ? &decoder->decoder.passes.session : nullptr, error, [&](el_session&) {
    check_given(decoder, report, "report");
    check_struct(report->struct_bytes, sizeof *report, "el_draft_report");
    const Decoder& d = decoder->decoder;
    if (report->depths != d.policy.rule.depths)
      fail(EL_USAGE, "a report of %u depths, wanted %u", report->depths, d.policy.rule.depths);
    if (!d.pipeline) fail(EL_USAGE, "the decoder drafts nothing");
    const DraftCounts& counts = d.pipeline->counts;
    const Drafts& drafts = d.pipeline->drafts();
    report->sampled = d.sampler.sampling().temperature > 0;
    report->tokens = counts.tokens, report->passes = counts.passes, report->reads = counts.reads;
    report->looked_up = counts.fed[0], report->looked_up_right = counts.right[0];
    report->predicted = counts.fed[1], report->predicted_right = counts.right[1];
    report->saved = drafts.saved();
    const Cost* const stages[] = {&drafts.costs.prologue, &drafts.costs.block, &drafts.costs.read};
    for (uint32_t i = 0; report->costs && i < 3 * EL_COST_ROWS; i++)
      report->costs[i] = stages[i / EL_COST_ROWS]->at(i % EL_COST_ROWS + 1);
    for (uint32_t rows = 1; report->threads && rows <= EL_COST_ROWS; rows++)
      report->threads[rows - 1] = uint32_t(d.passes.session.model.team->usual(kind_of(Role::block, rows)));
    for (uint32_t ran = 0; report->least && ran < report->depths; ran++)
      report->least[ran] = drafts.stakes({1, ran ? 0u : 1u, 0}, ran).least();
    if (!report->acceptance) return;
    const Acceptance& known = report->sampled ? drafts.sampled : drafts.greedy;
    double* to = report->acceptance;
    for (uint32_t depth = 0; depth + 1 < report->depths; depth++) {
      for (uint32_t m = 0; m < EL_MARGINS; m++) *to++ = known.model[depth * EL_MARGINS + m].value();
      *to++ = known.mean(depth);
    }
  });
}
