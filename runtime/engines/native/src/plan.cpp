#include "plan.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace edgeloop {

using file::NONE;

namespace {

constexpr uint32_t LOOK_AHEAD = 8;          // steps that a node may join beyond the first that it could
constexpr uint32_t ALONE = 512;             // columns that may be one piece because nothing smaller is whole
constexpr size_t PIECE_BYTES = 32 << 10;    // of weights: a few microseconds
constexpr uint32_t PIECES = 8;              // of a matrix at least, where it has as many
constexpr uint32_t MOST_PIECES = 96;        // a head has a thousand tiles, and taking a piece is not free

size_t filled_up(size_t n) { return (n + file::TILE - 1) / file::TILE * file::TILE; }

// Room for rows that lie side by side, in which what is needed at different times may have the same place.
class Room {
 public:
  // Of `size` floats, needed from time `from` (which never goes back) to time `until`.
  size_t take(size_t size, uint32_t from, uint32_t until) {
    while (!ends_.empty() && ends_.begin()->first < from) {
      free_.emplace(ends_.begin()->second.second, ends_.begin()->second.first);
      ends_.erase(ends_.begin());
    }
    const auto fits = free_.lower_bound(size);
    size_t offset = size_, taken = size;
    if (fits != free_.end()) {
      offset = fits->second;
      taken = fits->first;
      free_.erase(fits);
    } else {
      size_ += size;
    }
    ends_.emplace(until, std::pair(offset, taken));
    return offset;
  }
  size_t size() const { return size_; }

 private:
  std::multimap<uint32_t, std::pair<size_t, size_t>> ends_;  // until → offset, size
  std::multimap<size_t, size_t> free_;                       // size → offset
  size_t size_ = 0;
};

class Planner {
 public:
  explicit Planner(const Program& program)
      : program_(program), value_step_(program.sizes.size(), -1), value_domain_(program.sizes.size(), -1),
          code_step_(program.codes.size(), -1),
        memory_step_(program.memories.size(), -1) {}

  Plan make() {
    for (uint32_t i = 0; i < program_.nodes.size(); i++) place(i);
    finish_steps();
    lay_out();
    return std::move(plan_);
  }

 private:
  const Node& node(uint32_t i) const { return program_.nodes[i]; }
  static bool is_product(const Node& n) { return n.kind == file::LINEAR || n.kind == LOW; }
  static bool is_attention(const Node& n) {
    return n.kind == file::ATTEND || n.kind == file::ATTEND_TWICE || n.kind == file::ATTEND_LEARNED;
  }
  static Step::Kind home(const Node& n) {
    if (is_product(n)) return Step::COLUMNS;
    if (is_attention(n)) return Step::ATTEND;
    return n.kind == file::EXPERTS ? Step::EXPERTS : Step::ROWS;
  }

  // Columns that a node needs together; 0: all of a row.
  uint32_t grain(const Node& n) const {
    const uint32_t size = program_.sizes[n.reads[0]];
    switch (n.kind) {
      case file::ACT: case file::ADD: case file::SCALE: case file::SOFTCAP: return 1;
      case file::MUL: return size / program_.sizes[n.reads[1]];
      case file::ROTATE: return size / n.op->numbers[0];
      case file::NORM: return n.op->numbers[0] > 1 ? size / n.op->numbers[0] : 0;
      case KEYS: case VALUES: return program_.memories[n.memory].head_dim;
      case QUANTIZE: return program_.codes[n.codes].group < size ? program_.codes[n.codes].group : 0;
      default: return 0;
    }
  }

  // The codes that a product multiplies.
  template <class Each>
  static void each_codes(const Node& n, Each each) {
    for (uint32_t codes : {n.codes, n.low_codes})
      if (is_product(n) && codes != NONE) each(codes);
  }

  // The last step that something is written in which a node reads; −1: all is there before.
  int ready(const Node& n) const {
    int last = -1;
    for (uint32_t value : n.reads) last = std::max(last, value_step_[value]);
    each_codes(n, [&](uint32_t codes) { last = std::max(last, code_step_[codes]); });
    if (is_attention(n)) last = std::max(last, memory_step_[n.memory]);
    return last;
  }

  void place(uint32_t number) {
    const Node& n = node(number);
    const int first = ready(n), count = int(plan_.steps.size());
    for (int step = std::max(first, 0); step < std::min(count, std::max(first, 0) + int(LOOK_AHEAD)); step++)
      if (join(number, step, first)) return;
    plan_.steps.emplace_back();
    plan_.steps.back().kind = home(n);
    join(number, count, first);
  }

  // `ready`: of the node.
  bool join(uint32_t number, int at, int ready) {
    const Node& n = node(number);
    Step& step = plan_.steps[size_t(at)];
    if (step.kind == Step::COLUMNS)
      return ready == at ? join_domain(number, at) : is_product(n) && new_domain(number, at);
    const bool itself = step.kind == Step::ROWS && n.kind != file::SHIFT;  // may it read what the step writes?
    if (home(n) != step.kind || (ready == at && !itself)) return false;
    step.nodes.push_back(number);
    written(n, at, -1);
    return true;
  }

  bool new_domain(uint32_t number, int at) {
    Domain domain;
    domain.size = program_.sizes[node(number).y];
    domain.piece = file::TILE;
    domain.nodes = {number};
    auto& domains = plan_.steps[size_t(at)].domains;
    written(node(number), at, int(domains.size()));
    domains.push_back(std::move(domain));
    return true;
  }

  // What is done to columns joins the products that make them; values of two domains make these one.
  bool join_domain(uint32_t number, int at) {
    const Node& n = node(number);
    const uint32_t own = grain(n);
    if (!own || is_product(n)) return false;
    auto& domains = plan_.steps[size_t(at)].domains;
    int into = -1, from = -1;
    for (size_t i = 0; i < n.reads.size(); i++) {
      if (value_step_[n.reads[i]] != at) continue;
      if (i == 1 && n.kind == file::MUL && own > 1) return false;  // a number for many columns
      const int domain = value_domain_[n.reads[i]];
      (into < 0 || into == domain ? into : from) = domain;
    }
    uint32_t whole = std::lcm(domains[size_t(into)].piece, own);
    if (from >= 0) whole = std::lcm(whole, domains[size_t(from)].piece);
    const uint32_t size = domains[size_t(into)].size;
    if (whole > size && size > ALONE) return false;
    if (from >= 0) merge(at, into, from);
    domains[size_t(into)].piece = whole;
    domains[size_t(into)].nodes.push_back(number);
    written(n, at, into);
    return true;
  }

  void merge(int at, int into, int from) {
    Domain &to = plan_.steps[size_t(at)].domains[size_t(into)], &old = plan_.steps[size_t(at)].domains[size_t(from)];
    to.nodes.insert(to.nodes.end(), old.nodes.begin(), old.nodes.end());
    std::sort(to.nodes.begin(), to.nodes.end());
    for (uint32_t i : old.nodes)
      if (node(i).y != NONE) value_domain_[node(i).y] = into;
    old = Domain();
  }

  void written(const Node& n, int step, int domain) {
    if (n.y != NONE) {
      value_step_[n.y] = step;
      value_domain_[n.y] = domain;
    }
    if (n.kind == QUANTIZE) code_step_[n.codes] = step;
    if (n.kind == KEYS || n.kind == VALUES) memory_step_[n.memory] = std::max(memory_step_[n.memory], step);
  }

  void finish_steps() {
    uint32_t time = 0;
    for (Step& step : plan_.steps) {
      step.waits = step.kind != Step::ROWS;
      for (uint32_t i : step.nodes) step.waits |= node(i).kind == KEYS || node(i).kind == VALUES;
      times_.push_back(time);
      time += step.waits;
      auto& domains = step.domains;
      domains.erase(std::remove_if(domains.begin(), domains.end(), [](const Domain& d) { return d.nodes.empty(); }),
          domains.end());
      for (Domain& domain : domains) {
        domain.piece = piece(domain);
        domain.first_unit = step.units;
        step.units += domain.units();
      }
    }
    times_.push_back(time);
  }

  // A few of the smallest pieces, so that taking one costs nothing beside its work.
  uint32_t piece(const Domain& domain) const {
    size_t bytes = 1;  // of a smallest piece
    for (uint32_t i : domain.nodes) {
      if (node(i).kind != file::LINEAR) continue;
      const Matrix w = program_.model->part(node(i).op->weights[0], node(i).part, 0);
      bytes += tile_bytes(w) * (domain.piece / file::TILE);
    }
    const size_t smallest = domain.size / domain.piece;  // pieces of them, if each were one
    const size_t most = std::max<size_t>(smallest / PIECES, 1), least = std::max<size_t>(smallest / MOST_PIECES, 1);
    return domain.piece * uint32_t(std::clamp<size_t>((PIECE_BYTES + bytes / 2) / bytes, least, most));
  }

  // ---- where values lie ---------------------------------------------------------------------------------------------

  void lay_out() {
    const size_t values = program_.sizes.size();
    const uint32_t end = times_.back() + 1;
    std::vector<int> last(values, -2);  // the last step that reads it; −2: none
    std::vector<uint32_t> code_last(program_.codes.size(), 0), memory_last(program_.memories.size(), 0);
    std::vector<int> uses(values, 0);  // as an output
    for (uint32_t value : program_.outputs) uses[value]++;
    each_node([&](const Node& n, int step) {
      // Of what becomes codes, the floats are not read again: mostly they need no place of their own.
      for (size_t i = 0; i < n.reads.size(); i++)
        if (!is_product(n) || (i ? n.low_codes : n.codes) == NONE) last[n.reads[i]] = std::max(last[n.reads[i]], step);
      each_codes(n, [&](uint32_t codes) { code_last[codes] = std::max(code_last[codes], times_[size_t(step)]); });
      if (is_attention(n)) memory_last[n.memory] = std::max(memory_last[n.memory], times_[size_t(step)]);
    });
    plan_.values.resize(values);
    plan_.codes.resize(program_.codes.size());
    plan_.memories.assign(program_.memories.size(), 0);
    std::vector<bool> met(program_.memories.size());  // K or V that belong to it
    Room room, memory;
    const auto until = [&](uint32_t value) {
      return uses[value] ? end : last[value] < 0 ? 0 : times_[size_t(last[value])];
    };
    for (uint32_t value = 0; value < program_.inputs; value++)
      if (program_.sizes[value])
        plan_.values[value] = {Place::shared, room.take(filled_up(program_.sizes[value]), 0, until(value))};
    each_node([&](const Node& n, int step) {
      const uint32_t now = times_[size_t(step)];
      const bool rows = plan_.steps[size_t(step)].kind == Step::ROWS;
      const Place place = rows ? Place::own : Place::shared;
      if (n.y != NONE && !(last[n.y] == step && !uses[n.y] && value_can_be_scratch(step))) {
        if (program_.role == Role::head && uses[n.y] == 1 && !rows) plan_.values[n.y] = {Place::output, 0};
        else plan_.values[n.y] = {place, room.take(filled_up(program_.sizes[n.y]), now, std::max(now, until(n.y)))};
      }
      if (n.kind == QUANTIZE)
        plan_.codes[n.codes] = {place, room.take(codes_row(program_, program_.codes[n.codes]).floats, now,
            std::max(now, code_last[n.codes]))};
      if ((n.kind == KEYS || n.kind == VALUES) && program_.memories[n.memory].cache == NONE && !met[n.memory]) {
        const Memory& m = program_.memories[n.memory];
        plan_.memories[n.memory] = memory.take(2 * size_t(m.kv_heads) * m.head_dim, now, std::max(now,
            memory_last[n.memory]));
        met[n.memory] = true;
      }
    });
    plan_.floats = room.size();
    plan_.memory = memory.size();
    lay_out_scratch(last, uses);
  }

  bool value_can_be_scratch(int step) const {
    const Step::Kind kind = plan_.steps[size_t(step)].kind;
    return kind == Step::ROWS || kind == Step::COLUMNS;
  }

  void lay_out_scratch(const std::vector<int>& last, const std::vector<int>& uses) {
    for (size_t s = 0; s < plan_.steps.size(); s++) {
      const Step& step = plan_.steps[s];
      const auto lay = [&](const std::vector<uint32_t>& nodes, auto floats) {
        size_t used = 0;
        for (uint32_t i : nodes) {
          const uint32_t y = node(i).y;
          if (y == NONE || last[y] != int(s) || uses[y] || !value_can_be_scratch(int(s))) continue;
          plan_.values[y] = {Place::scratch, used};
          used += floats(y);
        }
        plan_.scratch = std::max(plan_.scratch, used);
      };
      if (step.kind == Step::ROWS) lay(step.nodes, [&](uint32_t y) { return filled_up(program_.sizes[y]); });
      for (const Domain& domain : step.domains)
        lay(domain.nodes, [&](uint32_t) { return filled_up(domain.piece) * ROW_TILE; });
    }
  }

  template <class Visit>
  void each_node(Visit visit) const {
    for (size_t s = 0; s < plan_.steps.size(); s++) {
      for (uint32_t i : plan_.steps[s].nodes) visit(node(i), int(s));
      for (const Domain& domain : plan_.steps[s].domains)
        for (uint32_t i : domain.nodes) visit(node(i), int(s));
    }
  }

  const Program& program_;
  Plan plan_;
  std::vector<int> value_step_, value_domain_, code_step_, memory_step_;
  std::vector<uint32_t> times_;  // of each step: how often threads have waited for each other before it
};

}  // namespace

CodesRow codes_row(const Program& program, const CodesOf& codes) {
  const size_t columns = program.sizes[codes.value], groups = size_t(group_count(int32_t(columns),
      int32_t(codes.group)));
  CodesRow row;
  row.scales = filled_up(filled_up(columns) / sizeof(float));
  row.sums = row.scales + filled_up(groups);
  row.floats = row.sums + filled_up(groups);
  return row;
}

Plan make_plan(const Program& program) { return Planner(program).make(); }

}  // namespace edgeloop
