// What is looked up in a text, and which drafts pay: against a search of the whole text, and in made-up worlds whose costs
// and acceptance are known. Exit status 0: all hold.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "decode/drafts.h"
#include "test_lot.h"

using namespace edgeloop::decode;
using namespace edgeloop::test;

namespace {

// ---- looking up ---------------------------------------------------------------------------------------------------

size_t alike(const std::vector<int64_t>& text, size_t place) {
  size_t n = 0;
  while (n < place && text[place - 1 - n] == text[text.size() - 1 - n]) n++;
  return n;
}

// Every place is looked at: the longest run of tokens alike that ends in the text proper, the newest of equals.
int64_t searched(const std::vector<int64_t>& text, size_t proper) {
  size_t longest = 0, found = 0;
  for (size_t place = std::min(proper, text.size() - 1); place >= 1; place--)
    if (const size_t n = alike(text, place); n > longest) longest = n, found = place;
  return longest ? text[found] : -1;
}

void test_lookup() {
  Lot lot(1);
  for (int round = 0; round < 300; round++) {
    Lookup text;
    std::vector<int64_t> all;
    const int words = 4 + int(lot.below(8));
    for (int i = 0; i < 40; i++) {
      if (lot.next() < 0.1) {
        const size_t kept = size_t(lot.below(int(all.size()) + 1));
        all.resize(kept);
        text.truncate(kept);
      }
      all.push_back(lot.below(words));
      text.append(all.back());
      std::vector<int64_t> drafts(size_t(lot.below(4))), with = all;
      for (int64_t& draft : drafts) with.push_back(draft = lot.below(words));
      const Lookup::Found found = text.next(drafts.data(), drafts.size());
      // Few enough places that none is left out.
      if (std::count(all.begin(), all.end(), with.back()) > 10) continue;
      expect(found.token == searched(with, all.size()), "another token than the longest run of tokens has behind it");
      expect(found.kind < Lookup::KINDS, "a kind that there is not");
    }
  }
  Lookup text;
  for (int64_t token : {1, 2, 3, 9, 1, 2, 3, 9, 1, 2, 3}) text.append(token);
  expect(text.next(nullptr, 0).kind == 3 * 4 + Lookup::ALIKE, "seven tokens that stood there, and twice with a 9 behind three");
  for (int64_t token : {5, 1, 2, 3}) text.append(token);
  expect(text.next(nullptr, 0).kind == 3 * 2 + Lookup::UNLIKE && text.next(nullptr, 0).token == 5, "9 and 5 behind three tokens");
  expect(Lookup().next(nullptr, 0).token == -1, "something behind nothing");
}

// ---- costs --------------------------------------------------------------------------------------------------------

void test_costs() {
  Cost cost;
  cost.set(1, 100);
  expect(cost.at(0) == 0 && cost.at(1) == 100 && cost.more(1) == 25, "one measurement");
  cost.set(4, 190), cost.set(2, 300);
  expect(cost.at(2) == 190 && cost.at(4) == 190, "two rows cost more than four");
  cost.set(2, 130);
  expect(cost.at(3) == 160 && cost.at(6) == 250 && cost.at(20) == 190 + 16 * 30, "between and beyond");
  cost.set(8, 5000);
  expect(cost.at(8) == 800, "a call of eight rows costs more than eight calls");
  const double before = cost.at(4);
  for (int i = 0; i < 200; i++) cost.saw(4, 3 * before, 3);
  expect(std::abs(cost.at(4) - before) < 1, "a machine that others use costs a call nothing");
  for (int i = 0; i < 60; i++) cost.saw(4, 140, 1);
  expect(cost.at(4) < 145, "a call that has become cheaper");
  for (int i = 0; i < 400; i++) cost.saw(4, 180, 1);
  expect(cost.at(4) > 170, "a call that has become dearer");
}

// ---- worlds -------------------------------------------------------------------------------------------------------

struct World {
  uint32_t depths;
  double prologue, block, read;  // of one row
  double row;                    // of one row more, as a share of that
  std::vector<double> right;     // of each depth but the last
  bool margins = false;          // do margins say which predictions are right?
  double lookup = 0;             // how often a text repeats itself
};

Costs costs_of(const World& world) {
  Costs costs;
  for (uint32_t rows = 1; rows <= Cost::MOST; rows++) {
    costs.prologue.set(rows, world.prologue * (1 + world.row * (rows - 1)));
    costs.block.set(rows, world.block * (1 + world.row * (rows - 1)));
    costs.read.set(rows, world.read * (1 + world.row * (rows - 1)));
  }
  return costs;
}

struct InFlight {
  uint32_t ran = 0;
  bool right = true;
  double odds = 1, follows = 0;  // follows 0: nothing is known
  bool follows_right = false;
};

constexpr uint32_t PLACE = 3 * 4 + Lookup::ONCE;

// The driver's pass, on tokens that are but right or wrong → what it costs.
double pass(const World& world, Drafts& drafts, std::vector<InFlight>& flight, Lot& lot) {
  Acceptance& known = drafts.greedy;
  const Costs real = costs_of(world);
  Load load;
  for (const InFlight& each : flight) load.rows += each.ran < world.depths, load.fresh += each.ran == 0;
  const auto chain = [&](size_t number) {
    double odds = 1;
    for (size_t i = 1; i <= number; i++) odds *= flight[i].odds;
    return odds;
  };
  const double place = world.lookup ? known.lookup[PLACE].value() : 0;
  for (;;) {
    const InFlight newest = flight.back();
    InFlight draft;
    draft.odds = newest.follows, draft.right = newest.follows_right;
    if (draft.odds == 0 && world.lookup) draft.odds = place, draft.right = lot.next() < world.lookup;
    if (draft.odds == 0 || !drafts.feeds(load, newest.ran, chain(flight.size() - 1) * draft.odds, known)) break;
    draft.right = draft.right && newest.right;
    flight.push_back(draft);
    load.rows++, load.fresh++;
  }
  std::vector<size_t> reads;
  for (InFlight& each : flight) load.reads += each.ran + 1 == world.depths;
  for (size_t i = 0; i < flight.size(); i++) {
    InFlight& each = flight[i];
    if (each.ran == world.depths) continue;
    each.ran++;
    const bool newest = i + 1 == flight.size();
    if (each.ran < world.depths) {
      if (newest ? !drafts.reads(load, each.ran, chain(i), place, known)
                 : !drafts.judges(load, each.ran, chain(i), flight[i + 1].odds, uint32_t(flight.size() - i - 1), known))
        continue;
      load.reads++;
    }
    reads.push_back(i);
  }
  drafts.passed(load);
  for (const size_t i : reads) {
    if (i >= flight.size()) break;
    InFlight& each = flight[i];
    if (each.ran == world.depths) {
      if (i + 1 < flight.size() && flight[i + 1].right) flight[i + 1].odds = 1;
      if (i + 1 < flight.size() && !flight[i + 1].right) flight.resize(i + 1);
      continue;
    }
    const bool holds = each.right && lot.next() < world.right[each.ran - 1];
    const double sure = world.margins ? (holds ? 0.8 : 0.2) : 0.5;
    const uint32_t margin = lot.next() < sure ? 5 : 1;
    if (each.right) known.saw(each.ran - 1, margin, holds);
    each.follows = known.model[(each.ran - 1) * Acceptance::MARGINS + margin].value();
    each.follows_right = holds;
    if (i + 1 < flight.size() && flight[i + 1].right != holds && each.follows > flight[i + 1].odds) flight.resize(i + 1);
  }
  return real.prologue.at(load.fresh) + real.block.at(load.rows) + real.read.at(load.reads);
}

// How many times as fast as sequential decoding so many tokens are.
double speed(const World& world, Drafts& drafts, int tokens, uint64_t seed) {
  Lot lot(seed);
  const Costs real = costs_of(world);
  std::vector<InFlight> flight(1);
  double spent = 0;
  for (int done = 0; done < tokens; done++) {
    while (flight.front().ran < world.depths) spent += pass(world, drafts, flight, lot);
    uint32_t ahead = 0;
    for (size_t i = 1; i < flight.size(); i++) ahead += flight[i].ran;
    drafts.finished(world.depths, ahead);
    if (world.lookup) drafts.greedy.lookup[PLACE].saw(flight.size() > 1 ? flight[1].right : lot.next() < world.lookup);
    flight.erase(flight.begin());
    if (flight.empty() || !flight.front().right) flight.assign(1, {});
    flight.front().odds = 1;
  }
  return tokens * real.token(world.depths) / spent;
}

void test_worlds() {
  const struct {
    const char* what;
    World world;
    double least, most;  // of the speed over 4000 tokens
  } worlds[] = {
      {"right drafts, cheap rows", {3, 10, 100, 30, 0.05, {1, 1}}, 2, 3},
      {"good drafts, cheap rows", {3, 10, 100, 30, 0.05, {0.85, 0.95}}, 1.3, 3},
      {"good drafts, dear rows", {3, 10, 100, 30, 0.9, {0.85, 0.95}}, 0.97, 1.1},
      {"bad drafts, cheap rows", {3, 10, 100, 30, 0.1, {0.1, 0.2}}, 0.97, 1.2},
      {"wrong drafts, dear rows", {3, 10, 100, 30, 0.9, {0, 0}}, 0.97, 1},
      {"margins that tell", {3, 10, 100, 30, 0.2, {0.6, 0.8}, true}, 1.05, 3},
      {"a dear head", {3, 10, 30, 200, 0.1, {0.8, 0.9}}, 0.97, 3},
      {"a text that repeats itself", {3, 10, 100, 30, 0.2, {0.6, 0.8}, false, 0.95}, 1.5, 4},
      {"a text that does not", {3, 10, 100, 30, 0.3, {0, 0}, false, 0.02}, 0.97, 1},
      {"two depths", {2, 10, 100, 30, 0.1, {0.9}}, 1.1, 3},
      {"twelve depths", {12, 10, 100, 30, 0.1, {0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1}}, 1.5, 12},
  };
  for (const auto& [what, world, least, most] : worlds) {
    Drafts drafts(world.depths, world.depths);
    drafts.costs = costs_of(world);
    const double found = speed(world, drafts, 4000, 3);
    if (found < least || found > most) printf("drafts: %.3f times sequential\n", found);
    expect(found >= least && found <= most, what);
    // And of short texts, each with nothing learnt: never much slower, whatever the luck.
    double worst = 9;
    for (uint64_t seed = 0; seed < 50; seed++) {
      Drafts fresh(world.depths, world.depths);
      fresh.costs = drafts.costs;
      worst = std::min(worst, speed(world, fresh, 96, seed));
    }
    if (worst < 0.97) printf("drafts: %.3f times sequential at worst\n", worst);
    expect(worst >= 0.97, what);
  }
  // Acceptance that changes in the middle is noticed.
  World world = {3, 10, 100, 30, 0.1, {0.95, 0.98}};
  Drafts drafts(3, 3);
  drafts.costs = costs_of(world);
  expect(speed(world, drafts, 1000, 5) > 1.5, "good drafts at first");
  world.right = {0, 0};
  const double wrong = speed(world, drafts, 96, 6);
  if (wrong < 0.9) printf("drafts: %.3f times sequential\n", wrong);
  expect(wrong > 0.9, "drafts that have become wrong");
  expect(speed(world, drafts, 500, 6) > 0.97, "drafts that stay wrong");
  world.right = {0.95, 0.98};
  speed(world, drafts, 1000, 7);
  const double again = speed(world, drafts, 1000, 8);
  if (again < 1.5) printf("drafts: %.3f times sequential\n", again);
  expect(again > 1.5, "drafts that have become right again");
}

}  // namespace

int main() {
  test_lookup();
  test_costs();
  test_worlds();
  return ended("drafts");
}
