// How many threads passes are worth, learned from how long they took: for each kind of pass, which is how many rows go
// through which of a model's programs, and with what is known of kinds that have more or less to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgeloop {

// How many threads passes of one kind use: the count that is fastest now. A neighbour of it is tried for a few passes
// now and then, the more rarely the longer nothing changes, and soon where passes have become slower.
class Pace {
 public:
  // 1 to most, for the next pass. At first `likely`; counts outside of `low` to `high` are not tried.
  int choose(int most, int likely, int low, int high);
  int choose(int most) { return choose(most, most, 1, most); }
  void learn(int count, double seconds);     // what a pass with as many took
  // Will `choose` look at anything but `most`?
  bool due(int most) const { return most != most_ || (trial_ == 0 && left_ <= 0); }
  int best() const { return best_; }         // 0: there was no pass yet
  bool compared() const { return settled_ > 0; }  // has another count been tried?

 private:
  static constexpr int TRIAL = 6, SOON = 5, LATE = 512;  // passes; a trial that goes badly ends after two
  void end_trial();

  int most_ = 0, best_ = 0;
  double mean_ = 0, settled_ = 0;            // seconds a pass of the best count: lately; when it was last compared
  int trial_ = 0, tried_ = 0;                // the count that is tried, 0: none; passes of it so far
  double trial_total_ = 0;
  int interval_ = SOON, left_ = SOON;      // passes between trials; until the next
  bool fewer_ = true;                        // the neighbour that is tried next
};

// Those of all kinds. A kind is a program, from 0 to PROGRAMS − 1, and PROGRAMS times how much it has to do, in some steps. The
// more there is to do, the more threads it is worth: where more rows are quickest with one thread, fewer are not tried with
// two, nor more rows with one where fewer are quickest with two. What has no passes yet begins with as many threads as
// what has a little less to do, or a little more.
class Paces {
 public:
  static constexpr int PROGRAMS = 8, KINDS = 256;

  int choose(int kind, int most);
  void learn(int kind, int count, double seconds) { kinds_[place(kind)].pace.learn(count, seconds); }
  // For the next pass of a kind, unless another count is tried in it.
  int usual(int kind, int most) const;

 private:
  static constexpr uint64_t RECENT = 512;  // passes: what was learned before them says nothing of other kinds
  struct Kind {
    Pace pace;
    uint64_t last = 0;  // pass
  };
  struct Known {
    int likely, low, high;
  };
  static size_t place(int kind) { return size_t(kind < 0 ? 0 : kind < KINDS ? kind : KINDS - 1); }
  Known known(size_t kind, int most) const;

  std::vector<Kind> kinds_ = std::vector<Kind>(KINDS);
  uint64_t passes_ = 0;
};

}  // namespace edgeloop
