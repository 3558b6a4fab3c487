#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace edgeloop {

#if defined(__x86_64__)

namespace {

// A bit of EAX of cpuid's leaf 7, subleaf 1, whose newer bits not every compiler has a name for.
bool has_bit(int bit) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> bit & 1);
}

}  // namespace

// The compiler's answers count what the system saves of a thread.
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

bool runs_avxvnni() { return runs_avx2() && has_bit(4); }

bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

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
