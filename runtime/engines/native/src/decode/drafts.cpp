#include "drafts.h"

#include <algorithm>
#include <cmath>

namespace edgeloop::decode {

namespace {

constexpr double MARGIN_EDGES[Acceptance::MARGINS - 1] = {0.25, 0.5, 1, 1.5, 2.5, 4};
// Of the errors that a depth makes, relative to how far it is from the last one: at first. Shallow depths of trained
// models are right in most tokens, and nearly always where they are sure.
constexpr double MARGIN_ERRORS[Acceptance::MARGINS] = {0.95, 0.6, 0.35, 0.2, 0.1, 0.05, 0.03};
constexpr double MARGIN_SHARES[Acceptance::MARGINS] = {0.18, 0.14, 0.2, 0.13, 0.18, 0.1, 0.07};
// What was looked up, by how many tokens are alike; and by whether other places say the same.
constexpr double LOOKUP[Lookup::LENGTHS] = {0.15, 0.35, 0.5, 0.6, 0.65, 0.75, 0.9};
constexpr double LOOKUP_LIKE[3] = {1, 1.15, 0.6};

constexpr double PACE = 16;          // passes
constexpr double WORTH = 0.02;       // of a token's time: what a draft, or a look for one, has to gain at least
constexpr double EXPLORED = 0.005;  // of the time, to learn how often drafts would be right
constexpr double LOSS = 0.6;        // of a token's time, within about RECENT tokens: then drafts rest
constexpr double SURE = 0.85;       // odds from which one is fed all the same
constexpr double WON = 0.5;         // of a token's time: then a loss is the first again
constexpr double KEPT = 2;          // of what was won, tokens' time that a run of bad luck may lose
constexpr double RECENT = 48;
constexpr uint32_t REST = 32, LONGEST_REST = 128;  // tokens; twice as many each time, until drafts have won as much

}  // namespace

void Cost::set(uint32_t rows, double nanoseconds) {
  if (rows < 1 || rows > MOST) return;
  measured_[rows] = nanoseconds;
  known_[rows] = true;
  fill();
}

void Cost::saw(uint32_t rows, double nanoseconds, double pace) {
  if (rows < 1 || rows > MOST) return;
  // About as fast as it ever is: what others take of the machine is not the call's.
  const double now = nanoseconds / pace, old = all_[rows];
  double& known = measured_[rows];
  if (old == 0)
    known = nanoseconds;
  else if (nanoseconds < old)
    known = old + (nanoseconds - old) * 0.25;
  else if (now > old)
    known = old + (std::min(now, 1.5 * old) - old) * 0.1;
  else
    known = old;
  known_[rows] = true;
  // What has not been seen for long may have been measured in a bad moment: it is taken for cheaper until it is tried.
  for (uint32_t others = rows + 1; others <= MOST; others++)
    if (known_[others]) measured_[others] += (known - measured_[others]) * 0.0001;
  fill();
}

void Cost::fill() {
  uint32_t low = 0, high = 0;
  for (uint32_t rows = MOST; rows >= 1; rows--) {
    if (!known_[rows]) continue;
    all_[rows] = high ? std::min(measured_[rows], all_[high]) : measured_[rows];  // fewer rows never cost more
    high = rows;
  }
  double slope = 0;
  for (high = 1; high <= MOST; high++) {
    if (!known_[high]) continue;
    if (low) all_[high] = std::min(all_[high], all_[1] * high);  // nor does one call cost more than many
    slope = (all_[high] - all_[low]) / (high - low);
    for (uint32_t between = low + 1; between < high; between++)
      all_[between] = low ? all_[low] + slope * (between - low) : all_[high];
    low = high;
  }
  if (low == 1) slope = 0.25 * all_[1];
  for (uint32_t rows = low + 1; low && rows <= MOST; rows++) all_[rows] = all_[low] + slope * (rows - low);
}

double Cost::at(uint32_t rows) const {
  if (rows <= MOST) return all_[rows];
  return all_[MOST] + (all_[MOST] - all_[MOST - 1]) * (rows - MOST);
}

void Odds::saw(bool right) {
  if (all_ >= MEMORY) {
    right_ *= (MEMORY - 1) / all_;
    all_ = MEMORY - 1;
  }
  right_ += right, all_ += 1;
}

Acceptance::Acceptance(uint32_t depths) {
  for (uint32_t depth = 0; depth + 1 < depths; depth++)
    for (uint32_t m = 0; m < MARGINS; m++) {
      model.emplace_back(1 - MARGIN_ERRORS[m] * (depths - 1 - depth) / depths);
      often.push_back(16 * MARGIN_SHARES[m]);
    }
  for (double alike : LOOKUP)
    for (double others : LOOKUP_LIKE) lookup.emplace_back(std::min(alike * others, 0.95));
}

uint32_t Acceptance::margin(double difference) {
  return uint32_t(std::upper_bound(std::begin(MARGIN_EDGES), std::end(MARGIN_EDGES), difference) - MARGIN_EDGES);
}

void Acceptance::saw(uint32_t depth, uint32_t margin, bool right) {
  const uint32_t first = depth * MARGINS;
  model[first + margin].saw(right);
  for (uint32_t m = first; m < first + MARGINS; m++) often[m] *= 1 - 1 / Odds::MEMORY;
  often[first + margin] += 1;
}

double Acceptance::mean(uint32_t depth) const {
  double right = 0, all = 0;
  for (uint32_t m = depth * MARGINS; m < (depth + 1) * MARGINS; m++) right += often[m] * model[m].value(), all += often[m];
  return right / all;
}

Drafts::Drafts(uint32_t depths, uint32_t stop)
    : greedy(depths), sampled(depths), most_(depths), depths_(stop), next_rest_(REST) {}

Drafts::Stakes Drafts::stakes(const Load& next, uint32_t ran) const {
  const double shared = std::max(depths_ - ran, 0.0), more = costs.block.more(next.rows);
  double right = shared * (costs.block.at(1) - more), wrong = shared * more;
  if (ran) {
    wrong += costs.prologue.at(1);
  } else {
    const double prologue = costs.prologue.more(next.fresh), read = costs.read.more(std::max(next.fresh, 1u));
    right += costs.prologue.at(1) - prologue + costs.read.at(1) - read;
    wrong += prologue + read;
  }
  return {right, wrong};
}

double Drafts::gain(const Load& next, uint32_t ran, double odds) const {
  const Stakes found = stakes(next, ran);
  return odds * found.right - (1 - odds) * found.wrong;
}

// What is saved if the newest token is read out deeper down than after `ran` depths, at the best of those places.
double Drafts::later(const Load& next, uint32_t ran, double chain, const Acceptance& known) const {
  double best = 0;
  for (uint32_t deeper = uint32_t(std::floor(std::min(depths_ - 0.01, double(most_ - 1)))); deeper > ran; deeper--) {
    const uint32_t first = (deeper - 1) * Acceptance::MARGINS;
    double found = -costs.read.at(1), all = 0;
    for (uint32_t m = first; m < first + Acceptance::MARGINS; m++) all += known.often[m];
    for (uint32_t m = first; m < first + Acceptance::MARGINS; m++)
      found += known.often[m] / all * std::max(gain(next, deeper, chain * known.model[m].value()), best);
    best = std::max(best, found);
  }
  return best;
}

bool Drafts::feeds(const Load& next, uint32_t ran, double odds, const Acceptance& known) const {
  if ((rest_ && odds < SURE) || next.rows >= MOST_IN_FLIGHT) return false;
  const double found = gain(next, ran, odds);
  return found > WORTH * costs.token(depths_) && (!ran || found > later(next, ran, odds, known));
}

bool Drafts::reads(const Load& now, uint32_t ran, double chain, double other, const Acceptance& known) {
  if (now.rows >= MOST_IN_FLIGHT || ran >= most_) return false;
  const double cost = costs.read.more(now.reads);
  const Load next = {now.rows, 0, 0};
  const double without = std::max(later(next, ran, chain, known), gain(next, ran, chain * other));
  const uint32_t first = (ran - 1) * Acceptance::MARGINS;
  double found = -cost, all = 0;
  for (uint32_t m = first; m < first + Acceptance::MARGINS; m++) all += known.often[m];
  for (uint32_t m = first; m < first + Acceptance::MARGINS; m++)
    found += known.often[m] / all *
             std::max({gain(next, ran, chain * std::max(known.model[m].value(), other)), without, 0.0});
  if (!rest_ && found > std::max(without, 0.0) + WORTH * costs.token(depths_)) return true;
  return chain == 1 && explores(cost);
}

bool Drafts::judges(const Load& now, uint32_t ran, double chain, double behind, uint32_t tokens,
    const Acceptance& known) const {
  if (ran >= most_ || depths_ <= ran) return false;
  const double more = costs.block.more(now.rows), passes = depths_ - ran;
  const double early = passes * (costs.block.at(1) - more + tokens * more);
  return chain * (1 - behind) * known.mean(ran - 1) * early > costs.read.more(now.reads);
}

bool Drafts::explores(double cost) {
  if (budget_ < cost) return false;
  budget_ -= cost;
  return true;
}

void Drafts::passed(const Load& load) {
  const double spent = costs.prologue.at(load.fresh) + costs.block.at(load.rows) + costs.read.at(load.reads);
  saved_ -= spent, recent_ -= spent;
}

void Drafts::took(const Load& load, double prologue, double block, double read) {
  const double spent = prologue + block + read;
  const double table = costs.prologue.at(load.fresh) + costs.block.at(load.rows) + costs.read.at(load.reads);
  if (table > 0) pace_ = std::max(1., pace_ + (std::min(spent / table, 4 * pace_) - pace_) / PACE);
  costs.prologue.saw(load.fresh, prologue, pace_);
  costs.block.saw(load.rows, block, pace_);
  costs.read.saw(load.reads, read, pace_);
}

void Drafts::begin() {
  recent_ = 0;
  rest_ = 0, next_rest_ = REST;
}

void Drafts::finished(uint32_t ran, uint32_t ahead) {
  depths_ += (ran - depths_) / Odds::MEMORY;
  const double alone = costs.token(ran);
  saved_ += alone, recent_ += alone;
  recent_ = std::min(recent_ * (1 - 1 / RECENT), KEPT * alone);  // what was won long ago is not there to lose
  budget_ = std::min(budget_ + EXPLORED * alone, 2 * costs.read.at(1));
  const double balance = recent_ + ahead * costs.block.more(2);  // drafts that have run count as long as they may be right
  if (rest_) {
    rest_--;
  } else if (balance < -LOSS * alone) {
    rest_ = next_rest_, recent_ = 0;
    next_rest_ = std::min(2 * next_rest_, LONGEST_REST);
  } else if (balance >= WON * alone) {
    next_rest_ = REST;
  }
}

}  // namespace edgeloop::decode
