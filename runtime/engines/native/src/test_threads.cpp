// The team of threads (how many it uses: test_pace.cpp): every piece once, phases in order, counts, sleep, float settings, forks. Exit status 0: all holds.
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <vector>

#include "alone.h"
#include "test_lot.h"
#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using namespace edgeloop;
using namespace edgeloop::test;

namespace {

TeamOptions fixed(int threads) {
  TeamOptions options;
  options.threads = threads, options.adaptive = false;
  return options;
}

// Three phases, each of which needs the one before it whole: any piece lost, doubled or early shows in the sum.
long long chain(Team& team, int n) {
  std::vector<long long> a(size_t(n), 0), b(size_t(n), 0);
  long long total = 0;
  team.run(0, [&](int worker) {
    team.share(n, worker, [&](int i) { a[size_t(i)] += i + 1; });
    team.share(n, worker, [&](int i) { b[size_t(i)] += a[size_t(n - 1 - i)]; });
    if (worker == 0)
      for (int i = 0; i < n; i++) total += b[size_t(i)] * (i + 1);
    team.barrier(worker);
    team.share(n, worker, [&](int i) { a[size_t(i)] = total; });
  });
  for (int i = 0; i < n; i++) expect(a[size_t(i)] == total, "a phase began before the one before it had ended");
  return total;
}

void pieces() {
  for (int threads : {1, 2, 3, 8}) {
    Team team(fixed(threads));
    expect(team.threads() == threads, "fewer threads than asked for");
    for (int n : {0, 1, 2, 7, 100}) {
      long long wanted = 0;
      for (int i = 0; i < n; i++) wanted += (long long)(n - i) * (i + 1);
      for (int pass = 0; pass < 50; pass++) expect(chain(team, n) == wanted, "a piece was lost, or done twice");
    }
  }
}

void counts_of_passes() {
  Team team([] {
    TeamOptions options;
    options.threads = 4;
    return options;
  }());
  std::vector<int> seen(5, 0);
  for (int pass = 0; pass < 500; pass++) {
    std::atomic<int> workers{0};
    int count = 0;
    team.run(3, [&](int worker) {
      workers++;
      if (worker == 0) count = team.count();
    });
    expect(workers == count && count >= 1 && count <= 4, "a pass ran on another number of workers than it says");
    seen[size_t(count)]++;
  }
  expect(seen[4] > 0 && seen[3] > 0, "no other count was tried");
}

// A worker that gets its core late in every pass, as beside another program: the team soon does without it.
void team_of_a_slow_worker() {
  TeamOptions options;
  options.threads = 2;
  Team team(options);
  int together = 0;
  constexpr int PASSES = 600;
  for (int pass = 0; pass < PASSES; pass++) {
    bool both = false;
    team.run(1, [&](int worker) {
      if (worker == 0) both = team.count() == 2;
      if (worker == 1) usleep(3000);
      team.barrier(worker);
    });
    together += both;
  }
  expect(together < PASSES / 10, "a worker that is always late is waited for");
}

double used_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

void sleep_of_a_team() {
  Team team(fixed(3));
  chain(team, 10);
  usleep(20000);
  const double before = used_seconds();
  usleep(300000);
  expect(used_seconds() - before < 0.1, "a team at rest uses the processor");  // three that spin would use 0.6
  chain(team, 10);
  // A worker that waits long for another within a pass sleeps too.
  const double start = used_seconds();
  team.run(0, [&](int worker) {
    if (worker == 0) usleep(300000);
    team.barrier(worker);
  });
  expect(used_seconds() - start < 0.1, "a wait within a pass uses the processor");
}

// Waits that sleep at once: somebody who is not woken would sleep for ever.
void sleep_and_wake() {
  TeamOptions options = fixed(2);
  options.spin_microseconds = 0;
  Team team(options);
  std::vector<int> turns(2, 0);
  for (int pass = 0; pass < 2000; pass++)
    team.run(0, [&](int worker) {
      for (int phase = 0; phase < 4; phase++) {
        for (volatile int i = 0; i < (pass * 7 + phase * 3 + worker) % 64 * 8; i = i + 1) {
        }
        turns[size_t(worker)]++;
        team.barrier(worker);
      }
    });
  expect(turns[0] == 8000 && turns[1] == 8000, "a phase was left out");
}

void callers() {
  Team team(fixed(2));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 3; t++)
    threads.emplace_back([&] {
      for (int i = 0; i < 50; i++)
        if (chain(team, 20) != 20 * 21 * 22 / 6) wrong++;
    });
  for (std::thread& thread : threads) thread.join();
  expect(wrong == 0, "passes of two callers got mixed");
}

void float_settings() {
#if defined(__x86_64__)
  Team team(fixed(2));
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // flush denormals, read them as zero
  std::atomic<int> flushing{0};
  team.run(0, [&](int) {
    if (_mm_getcsr() & 0x8040) flushing++;
  });
  expect(flushing == 0, "a caller's float settings reach a pass");
  expect((_mm_getcsr() & 0x8040) == 0x8040, "a caller's float settings are not put back");
  _mm_setcsr(before);
#endif
}

void pinning() {
#if defined(__linux__)
  const int cpus[] = {0, 0};
  TeamOptions options = fixed(2);
  options.cpus = cpus;
  Team team(options);
  chain(team, 5);
#endif
}

[[maybe_unused]] bool runs_on_four(Team& team) {  // unused where no process is forked
  std::atomic<int> workers{0};
  bool right = true;
  for (int pass = 0; pass < 20; pass++) right &= chain(team, 10) == 10 * 11 * 12 / 6;
  team.run(0, [&](int) { workers++; });
  return right && workers == 4;
}

// A child of a process has none of its threads and makes its own, also a child of its; the end waits for none of others.
void fork_of_a_process() {
#if !defined(__SANITIZE_THREAD__)  // which takes no forks of several threads
  Team* team = new Team(fixed(4));
  chain(*team, 10);
  const pid_t child = fork();
  if (child == 0) {
    const bool right = runs_on_four(*team);
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      const bool right_too = runs_on_four(*team);
      delete team;
      _exit(right_too && failures == 0 ? 0 : 1);
    }
    int status = 1;
    waitpid(grandchild, &status, 0);
    delete team;
    _exit(right && status == 0 && failures == 0 ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a fork of the process cannot run a pass");
  delete team;
#endif
}

// A lock that a thread holds when the process is forked is an error in the copy; one that it takes itself is not.
void fork_while_locked() {
#if !defined(__SANITIZE_THREAD__)
  Alone held, open;
  std::atomic<int> locked{0};
  std::thread holder([&] {
    const std::lock_guard turn(held);
    locked = 1;
    while (locked == 1) usleep(1000);
  });
  while (!locked) usleep(1000);
  const pid_t child = fork();
  if (child == 0) {
    bool refused = false;
    try {
      held.lock();
    } catch (const Error& error) {
      refused = error.code == EL_USAGE;
    }
    const std::lock_guard turn(open);
    _exit(refused ? 0 : 1);
  }
  locked = 2;
  int status = 1;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a fork of the process takes a lock that nobody gives back");
  holder.join();
  const std::lock_guard turn(held);
#endif
}

}  // namespace

int main() {
  pieces();
  counts_of_passes();
  callers();
  float_settings();
  pinning();
  sleep_of_a_team();
  sleep_and_wake();
  team_of_a_slow_worker();
  fork_of_a_process();
  fork_while_locked();
  return ended("threads");
}
