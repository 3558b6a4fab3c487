// Which table of kernels runs: the best for the processor, or the one that EDGELOOP_KERNELS names.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace edgeloop {

extern const Kernels PORTABLE;
#if defined(__x86_64__)
extern const Kernels AVX2, AVX512;
#endif

namespace {

struct Choice {
  const Kernels* kernels;
  bool (*runs)();
};

// The best first. What the system does not save for a thread is not supported either.
const Choice CHOICES[] = {
#if defined(__x86_64__)
  {&AVX512,
     [] {
       return bool(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"));
     }},
  {&AVX2, [] { return bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")); }},
#endif
  {&PORTABLE, [] { return true; }},
};

}  // namespace

const Kernels* kernels_named(const char* name) {
  for (const Choice& choice : CHOICES)
    if (strcmp(choice.kernels->name, name) == 0) return choice.runs() ? choice.kernels : nullptr;
  return nullptr;
}

const Kernels* choose_kernels() {
  if (const char* name = getenv("EDGELOOP_KERNELS"); name && *name) return kernels_named(name);
  for (const Choice& choice : CHOICES)
    if (choice.runs()) return choice.kernels;
  return nullptr;
}

}  // namespace edgeloop
