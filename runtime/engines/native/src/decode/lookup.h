// Drafts from the text itself, at no cost of the model: what followed when the newest tokens stood there before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgeloop::decode {

class Lookup {
 public:
  // How many of the newest tokens stood there before (1, 2, 3, 4 to 5, 6 to 9, 10 to 19, more), and whether they stood
  // there once, or more often with the same or with another token behind them: 3 · length + which.
  static constexpr uint32_t LENGTHS = 7, KINDS = 3 * LENGTHS;
  enum Which : uint32_t { ONCE = 0, ALIKE = 1, UNLIKE = 2 };
  struct Found {
    int64_t token = -1;  // −1: they never did
    uint32_t kind = 0;
  };

  Lookup();
  size_t size() const { return ids_.size(); }
  int64_t at(size_t i) const { return ids_[i]; }
  void append(int64_t token);
  void truncate(size_t tokens);  // all but the first so many are forgotten
  // What may follow the text with drafts [count] behind it.
  Found next(const int64_t* drafts, size_t count) const;

 private:
  static constexpr uint32_t ORDERS[] = {3, 1};  // tokens whose places are remembered
  static constexpr uint32_t BITS = 12;          // of a hash
  static constexpr uint32_t NONE = ~0u;
  static constexpr int PLACES = 12;             // that are compared, the newest first
  static constexpr uint32_t LONGEST = 20;       // tokens that are compared

  // As in LZ77: the last place of each hash, and for each place the one before with the same hash.
  struct Chains {
    std::vector<uint32_t> last, before;
  };
  template <class At>
  static uint32_t hash(const At& at, size_t end, uint32_t order);

  std::vector<int64_t> ids_;
  Chains chains_[2];
};

}  // namespace edgeloop::decode
