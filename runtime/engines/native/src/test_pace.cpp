// How many threads passes are worth: what is learned from made-up times. Exit status 0: all hold.
#include "pace.h"

#include "test_lot.h"

using namespace edgeloop;
using namespace edgeloop::test;

namespace {

constexpr int kind_of(int step, int program = 1) { return step * Paces::PROGRAMS + program; }

// Runs passes of a kind, of `one` seconds with one thread and `two` with two → how many used two.
int run(Paces& paces, int kind, int passes, double one, double two) {
  int together = 0;
  for (int i = 0; i < passes; i++) {
    const int count = paces.choose(kind, 2);
    paces.learn(kind, count, count == 1 ? one : two);
    together += count == 2;
  }
  return together;
}

// Passes with fewer threads are faster here, then slower: the pace follows both ways.
void pace() {
  Pace pace;
  int last = 0;
  auto runs = [&](int passes, double one, double two) {
    for (int i = 0; i < passes; i++) {
      last = pace.choose(2);
      pace.learn(last, last == 1 ? one : two);
    }
  };
  runs(100, 1.0, 0.6);
  expect(last == 2, "the faster count is not used");
  runs(40, 1.0, 3.0);
  expect(last == 1, "a count that has become slow is still used");
  double spent = 0;
  for (int i = 0; i < 1000; i++) {
    last = pace.choose(2);
    pace.learn(last, last == 1 ? 1.0 : 3.0);
    spent += last == 1 ? 1.0 : 3.0;
  }
  expect(spent < 1000 / 0.9, "trying costs more than a tenth");
  runs(600, 1.0, 0.6);
  expect(last == 2, "a count that has become fast again is not used");
  expect(pace.choose(1) == 1, "one thread is one thread");
}

// Another program takes a core, now and then or always: a pass of two threads then waits for a time slice, or for several.
// Over all passes two threads that may be fewer are never slower than 0.9 × one. Times are made up, so that this holds anywhere.
void pace_beside_others() {
  struct {
    double one_slowed, two_slowed;  // of 1: how many passes meet the other program
    double times;                   // as slow as they then are
  } const loads[] = {{0, 0, 1}, {0.02, 0.3, 3}, {0.05, 0.6, 3}, {0.1, 1, 2.5}, {0.1, 0.2, 12}, {0.02, 0.05, 40}};
  Lot lot(1);
  for (const auto& load : loads)
    for (int length : {100, 1000, 60000}) {  // passes with the other program, then as many without, or all with it
      Pace pace;
      double one = 0, team = 0;
      for (int pass = 0; pass < 60000; pass++) {
        const bool loaded = pass / length % 2 == 0;
        const double alone = loaded && lot.next() < load.one_slowed ? load.times : 1;
        const double together = 0.6 * (loaded && lot.next() < load.two_slowed ? load.times : 1);
        const int count = pace.choose(2);
        pace.learn(count, count == 1 ? alone : together);
        one += alone;
        team += count == 1 ? alone : together;
      }
      expect(team <= one / 0.9, "two threads beside another program are slower than 0.9 of one");
    }
}

// What is known of passes with less or more to do.
void like_passes() {
  Paces paces;
  expect(paces.usual(kind_of(0), 4) == 4, "what nothing is known of does not begin with all threads");
  run(paces, kind_of(1), 60, 1.0, 0.6);
  expect(run(paces, kind_of(2), 200, 2.0, 1.2) == 200, "more rows are tried with one thread, where fewer want two");
  expect(run(paces, kind_of(0), 60, 0.1, 0.3) < 20, "fewer rows are not tried with one thread");
  expect(paces.usual(kind_of(0), 2) == 1, "fewer rows, with what more rows are quickest with");
  expect(run(paces, kind_of(1, 2), 10, 1.0, 3.0) > 0, "another program is taken for the same");
  // Another program takes a core: what was learned changes, first of fewer rows and then of more.
  run(paces, kind_of(1), 600, 1.0, 3.0);
  expect(run(paces, kind_of(2), 200, 2.0, 6.0) < 40, "more rows go on with two, where fewer have become quicker with one");
  expect(paces.usual(kind_of(3), 2) == 1, "what is new does not begin as the one beside it");
  // What was learned long ago says nothing.
  run(paces, kind_of(0, 3), 600, 1.0, 0.6);
  expect(paces.usual(kind_of(3), 2) == 2, "what was learned long ago is still taken for true");
}

}  // namespace

int main() {
  pace();
  pace_beside_others();
  like_passes();
  return ended("pace");
}
