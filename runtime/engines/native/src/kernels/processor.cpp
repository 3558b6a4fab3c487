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

// What cpuid says. The compiler's __builtin_cpu_supports is not asked: zig's compilers come without the table behind it.
struct Leaf {
  unsigned eax, ebx, ecx, edx;
};

Leaf leaf(unsigned number, unsigned subleaf) {
  Leaf found{};
  return __get_cpuid_count(number, subleaf, &found.eax, &found.ebx, &found.ecx, &found.edx) ? found : Leaf{};
}

bool all(unsigned found, unsigned wanted) { return (found & wanted) == wanted; }

// Whether the system saves these registers of a thread: bits of XCR0.
constexpr unsigned YMM = 0x6, ZMM = 0xe6;

bool saves(unsigned wanted) {
  if (!all(leaf(1, 0).ecx, 1u << 27)) return false;  // it does not let programs ask
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
#if defined(__APPLE__)
  if (all(low, YMM)) low |= ZMM;  // there from the first instruction on that uses them
#endif
  return all(low, wanted);
}

}  // namespace

bool runs_avx2() {
  constexpr unsigned AVX = 1u << 28, F16C = 1u << 29, AVX2 = 1u << 5;  // of ecx, ecx and ebx
  return saves(YMM) && all(leaf(1, 0).ecx, AVX | F16C) && all(leaf(7, 0).ebx, AVX2);
}

bool runs_avxvnni() { return runs_avx2() && all(leaf(7, 1).eax, 1u << 4); }

bool runs_avx512() {
  constexpr unsigned F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31, VNNI = 1u << 11;  // VNNI of ecx
  return saves(ZMM) && all(leaf(7, 0).ebx, F | DQ | BW | VL) && all(leaf(7, 0).ecx, VNNI);
}

#if defined(__linux__)

// Tiles take 8 KB of each thread that uses them, so a process has them only once it has asked.
bool runs_amx() {
  constexpr unsigned TILE = 1u << 24, INT8 = 1u << 25;  // of edx
  constexpr long ASK = 0x1023, TILE_DATA = 18;          // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  const unsigned found = leaf(7, 0).edx;
  return runs_avx512() && all(found, TILE | INT8) && syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
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
