// Normalizers: what a text becomes before it is split.
#include "text.h"

namespace edgeloop::text {

using namespace file;

void Text::normalize(const Step& step, std::string& text, bool& first) const {
  switch (step.kind) {
    case REPLACE: return replace(step, text, first);
    case PREPEND:
      if (!text.empty()) text.insert(0, string(step.a));
      return;
    case STRIP: {
      size_t start = 0, end = text.size();
      if (step.flags & 1)
        for (size_t next = 0; next < end && in(rules_->space, next_character(text, next));) start = next;
      while (step.flags & 2 && end > start) {
        size_t last = before(text, end);
        const size_t at = last;
        if (!in(rules_->space, next_character(text, last))) break;
        end = at;
      }
      if (start) first = false;
      text = text.substr(start, end - start);
      return;
    }
    default: fail(EL_FORMAT, "the text section has a normalizer of kind %u", step.kind);
  }
}

}  // namespace edgeloop::text
