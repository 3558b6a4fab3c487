// A mutex that knows of forks: the copy of a process has none of its threads, and waits for none of them.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "error.h"

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace edgeloop {

// The number of the process; 0 where processes are not forked.
inline int this_process() {
#if defined(_WIN32)
  return 0;
#else
  return int(getpid());
#endif
}

class Alone {
 public:
  // Throws an Error in a process that was forked while a thread of the other one held it: what it guards may be half done.
  void lock() {
    const int self = this_process();
    for (int tries = 0; !mutex_.try_lock(); tries++) {
      const int holder = holder_.load();
      if (holder == self) {
        mutex_.lock();
        break;
      }
      // Nobody: it is being taken or given back, unless the fork was at that instant.
      if (holder || tries == MOST_TRIES)
        fail(EL_USAGE, "the process was forked while the model computed; open the model again in the new one");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    holder_.store(self);
  }
  void unlock() {
    holder_.store(0);
    mutex_.unlock();
  }

 private:
  static constexpr int MOST_TRIES = 2000;
  std::mutex mutex_;
  std::atomic<int> holder_{0};
};

}  // namespace edgeloop
