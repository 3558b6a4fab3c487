#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace edgeloop {

#if defined(__x86_64__)

namespace {

// What cpuid says, for bits that not every compiler has a name for.
struct Leaf {
  unsigned eax, ebx, ecx, edx;
};

Leaf leaf(unsigned number, unsigned subleaf) {
  Leaf found{};
  return __get_cpuid_count(number, subleaf, &found.eax, &found.ebx, &found.ecx, &found.edx) ? found : Leaf{};
}

}  // namespace

// The compiler's answers count what the system saves of a thread. Bit 29: float16.
bool runs_avx2() { return __builtin_cpu_supports("avx2") && (leaf(1, 0).ecx >> 29 & 1); }

bool runs_avxvnni() { return runs_avx2() && (leaf(7, 1).eax >> 4 & 1); }

bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

#if defined(__linux__)

// Tiles take 8 KB of each thread that uses them, so a process has them only once it has asked.
bool runs_amx() {
  constexpr unsigned TILE = 1u << 24, INT8 = 1u << 25;  // of edx
  constexpr long ASK = 0x1023, TILE_DATA = 18;          // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  const unsigned found = leaf(7, 0).edx;
  return runs_avx512() && (found & TILE) && (found & INT8) && syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
}

#else

bool runs_amx() { return false; }

#endif

#elif defined(__aarch64__) && defined(__linux__)

namespace {
constexpr unsigned long ASIMDDP = 1ul << 20, I8MM = 1ul << 13;  // of AT_HWCAP and AT_HWCAP2, which older headers do not name
}

bool runs_dotprod() { return (getauxval(AT_HWCAP) & ASIMDDP) != 0; }
bool runs_i8mm() { return runs_dotprod() && (getauxval(AT_HWCAP2) & I8MM) != 0; }

#elif defined(__aarch64__) && defined(__APPLE__)

namespace {

bool has(const char* name) {
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname(name, &found, &size, nullptr, 0) == 0 && found != 0;
}

}  // namespace

bool runs_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool runs_i8mm() { return runs_dotprod() && has("hw.optional.arm.FEAT_I8MM"); }

#elif defined(__aarch64__)

bool runs_dotprod() { return false; }
bool runs_i8mm() { return false; }

#endif

}  // namespace edgeloop
