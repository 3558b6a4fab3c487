// From a text to tokens: added tokens are found, the rest is normalized, split, and given to the model.
#include "models.h"

namespace edgeloop::text {

using namespace file;

void Text::tokens(Bytes bytes, std::vector<uint32_t>& ids) const {
  switch (rules_->model) {
    case BPE: return bpe(*this, bytes, ids);
    case UNIGRAM: return unigram(*this, bytes, ids);
    case WORDPIECE: return word_pieces(*this, bytes, ids);
    default: return word_level(*this, bytes, ids);
  }
}

void Text::normalize(Work& work) const {
  if (!steps_.count || steps_[0].stage != NORMALIZE) return;
  std::string all, text;
  all.reserve(work.text.size());
  for (Span& span : work.spans) {
    const size_t start = all.size();
    if (span.token < 0 && span.bytes) {
      text.assign(work.of(span));
      for (const Step& step : steps_)
        if (step.stage == NORMALIZE) normalize(step, text, span.first);
      all.append(text);
    }
    span.start = start;
    span.bytes = all.size() - start;
  }
  work.text.swap(all);
}

void Text::encode(Bytes text, bool add_special, std::vector<uint32_t>& ids) const {
  for (size_t at = 0, broken; at < text.size();) {
    bool open;
    const size_t n = uint8_t(text[at]) < 0x80 ? 1 : whole(text, at, broken, open);
    if (!n) fail(EL_USAGE, "byte %zu of the text is no UTF-8; give Unicode text, encoded as UTF-8", at);
    at += n;
  }
  Work work{std::string(text), {{0, text.size(), -1, true}}};
  std::vector<Span> spans;
  const auto find = [&](bool normalized) {
    spans.clear();
    find_added(work, normalized, spans);
    work.spans.swap(spans);
  };
  find(false);
  normalize(work);
  find(true);
  for (const Step& step : steps_)
    if (step.stage == SPLIT) split(step, work);
  if (add_special) ids.insert(ids.end(), before_.begin(), before_.end());
  for (const Span& span : work.spans)
    if (span.token >= 0)
      ids.push_back(uint32_t(span.token));
    else if (span.bytes)
      tokens(work.of(span), ids);
  if (add_special) ids.insert(ids.end(), after_.begin(), after_.end());
}

}  // namespace edgeloop::text
