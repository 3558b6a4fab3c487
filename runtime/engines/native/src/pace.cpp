#include "pace.h"

#include <algorithm>

namespace edgeloop {

int Pace::choose(int most, int likely, int low, int high) {
  if (most != most_) *this = Pace(), most_ = most, best_ = likely;
  if (most == 1) return 1;
  if (trial_ == 0 && --left_ < 0) {
    const auto open = [&](int count) { return count >= low && count <= high; };
    trial_ = fewer_ ? best_ - 1 : best_ + 1;
    if (!open(trial_)) trial_ = fewer_ ? best_ + 1 : best_ - 1;
    fewer_ = !fewer_;
    if (!open(trial_)) trial_ = 0, left_ = interval_;  // there is none, or it is known to be slower
    tried_ = 0, trial_total_ = 0;
  }
  return trial_ ? trial_ : best_;
}

void Pace::learn(int count, double seconds) {
  if (count == trial_) {
    trial_total_ += seconds;
    tried_++;
    if (tried_ == TRIAL || (tried_ >= 2 && trial_total_ > 1.5 * tried_ * mean_)) end_trial();
  } else if (count == best_) {
    // A single pass counts as four times as slow at most: another program's time slice is not a change.
    mean_ = mean_ == 0 ? seconds : mean_ + 0.1 * ((seconds < 4 * mean_ ? seconds : 4 * mean_) - mean_);
    if (settled_ > 0 && mean_ > 1.4 * settled_ && left_ > SOON) left_ = SOON, settled_ = mean_;
  }
}

void Pace::end_trial() {
  const double tried = trial_total_ / tried_;
  if (tried < 0.95 * mean_) {
    best_ = trial_, mean_ = tried, interval_ = SOON;
  } else if (interval_ < LATE) {
    interval_ *= 2;
  }
  trial_ = 0, left_ = interval_, settled_ = mean_;
}

Paces::Known Paces::known(size_t kind, int most) const {
  Known found{most, 1, most};
  size_t nearest = KINDS;  // steps away
  for (size_t other = kind % PROGRAMS; other < KINDS; other += PROGRAMS) {
    const Kind& its = kinds_[other];
    if (other == kind || its.last == 0 || its.last + RECENT < passes_) continue;
    const size_t away = other < kind ? kind - other : other - kind;
    const int best = std::min(its.pace.best(), most);
    if (away < nearest) nearest = away, found.likely = best;
    if (!its.pace.compared()) continue;
    if (other < kind) found.low = std::max(found.low, best);
    if (other > kind) found.high = std::min(found.high, best);
  }
  // Where the two disagree, one of them was measured in a bad moment.
  if (found.low > found.high) found.low = 1, found.high = most;
  found.likely = std::clamp(found.likely, found.low, found.high);
  return found;
}

int Paces::choose(int kind, int most) {
  Kind& its = kinds_[place(kind)];
  its.last = ++passes_;
  if (!its.pace.due(most)) return its.pace.choose(most);
  const Known found = known(place(kind), most);
  return its.pace.choose(most, found.likely, found.low, found.high);
}

int Paces::usual(int kind, int most) const {
  const Pace& pace = kinds_[place(kind)].pace;
  return pace.best() ? std::min(pace.best(), most) : known(place(kind), most).likely;
}

}  // namespace edgeloop
