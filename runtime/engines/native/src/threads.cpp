#include "threads.h"

#include <algorithm>
#include <chrono>
#include <system_error>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "alone.h"

namespace edgeloop {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int MOST_THREADS = 128, PAUSES_BETWEEN_LOOKS = 64;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The processor's default treatment of floats while this lives: what a host has set (flushing denormals) would change
// results on the thread that calls, and on it alone.
class DefaultFloats {
 public:
#if defined(__x86_64__)
  DefaultFloats() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloats() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  DefaultFloats() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
  }
  ~DefaultFloats() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#else
  DefaultFloats() {}
#endif
};

void pin(std::thread& thread, int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);  // a processor that is not ours: it stays where it was
#else
  (void)thread, (void)cpu;
#endif
}

}  // namespace

Team::Team(const TeamOptions& options)
    : options_(options), shares_(size_t(std::clamp(options.threads, 1, MOST_THREADS))) {
  if (options.cpus) cpus_.assign(options.cpus, options.cpus + options.threads);
  options_.cpus = nullptr;  // the caller's
  start();
}

void Team::start() {
  owner_ = this_process();
  for (int i = 1; i < options_.threads && i < MOST_THREADS; i++) {
    try {
      workers_.emplace_back(&Team::work, this, i);
    } catch (const std::system_error&) {
      break;
    }
    if (!cpus_.empty()) pin(workers_.back(), cpus_[size_t(i)]);
  }
}

void Team::forget() {
  for (std::thread& thread : workers_) thread.detach();
  workers_.clear();
  (void)bed_.release();  // its end would wait for those who slept
}

Team::~Team() {
  if (this_process() != owner_) {
    forget();
    return;
  }
  change(pass_, ((pass_.load() >> 8) + 1) << 8);  // another word than any thread has seen, also before the first pass
  for (std::thread& thread : workers_) thread.join();
}

void Team::run(int kind, Call call, void* data) {
  std::lock_guard<std::mutex> one_at_a_time(passes_);
  DefaultFloats floats;
  if (this_process() != owner_) {
    forget();
    bed_ = std::make_unique<Bed>();
    sleeping_ = arrived_ = 0;
    pass_ = phase_ = 0;
    start();
  }
  const int most = threads();
  if (most == 1 || !options_.adaptive) return run_together(most, call, data);
  const int count = paces_.choose(kind, most);
  const Clock::time_point start = Clock::now();
  run_together(count, call, data);
  paces_.learn(kind, count, std::chrono::duration<double>(Clock::now() - start).count());
}

void Team::run_together(int count, Call call, void* data) {
  count_ = count;
  if (count == 1) return call(data, 0);
  for (int i = 0; i < count; i++) shares_[size_t(i)].taken[phase_.load(std::memory_order_relaxed) & 1].store(0);
  call_ = call, data_ = data;
  const uint32_t serial = (pass_.load(std::memory_order_relaxed) >> 8) + 1;
  change(pass_, serial << 8 | uint32_t(count));
  call(data, 0);
  barrier(0);
}

void Team::work(int worker) {
  DefaultFloats floats;
  for (uint32_t seen = 0;;) {
    wait_while(pass_, seen);
    seen = pass_.load(std::memory_order_acquire);
    const int count = int(seen & 255);
    if (count == 0) return;
    if (worker >= count) continue;  // the pass may be over: nothing of it is looked at
    call_(data_, worker);
    barrier(worker);
  }
}

void Team::barrier(int worker) {
  const int count = count_;  // read before arriving: once all have, the next pass may change it
  if (count == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  shares_[size_t(worker)].taken[(phase + 1) & 1].store(0, std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < count) return wait_while(phase_, phase);
  arrived_.store(0, std::memory_order_relaxed);
  change(phase_, phase + 1);
}

// Sleepers count themselves, then look at the word once more; whoever changes a word looks for sleepers afterwards. The
// order of these four accesses is one (seq_cst), so one of the two sees the other.
void Team::wait_while(const std::atomic<uint32_t>& word, uint32_t value) {
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(options_.spin_microseconds);
  do {
    for (int i = 0; i < PAUSES_BETWEEN_LOOKS; i++) {
      if (word.load(std::memory_order_acquire) != value) return;
      pause_briefly();
    }
  } while (Clock::now() < end);
  std::unique_lock<std::mutex> lock(bed_->mutex);
  sleeping_++;
  bed_->woken.wait(lock, [&] { return word.load() != value; });
  sleeping_--;
}

// The change is an exchange, which is how x86 does a seq_cst store anyway. On Arm a store would do, but not under qemu (7.2
// on x86): there stlr and the ldar behind it became plain accesses, which passed each other once in 2000 times.
void Team::change(std::atomic<uint32_t>& word, uint32_t value) {
  word.exchange(value);
  if (sleeping_.load() == 0) return;
  std::lock_guard<std::mutex> lock(bed_->mutex);
  bed_->woken.notify_all();
}

}  // namespace edgeloop
