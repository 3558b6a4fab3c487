// Which table of kernels runs: the best for the processor, or the one that EDGELOOP_KERNELS names.
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "processor.h"

namespace edgeloop {

extern const Kernels PORTABLE;
#if defined(__x86_64__)
extern const Kernels AVX2, AVX512;
extern const ProductCodes AVXVNNI_PRODUCT, AMX_PRODUCT;
#elif defined(__aarch64__)
extern const Kernels NEON, DOTPROD, I8MM;
#endif

namespace {

struct Choice {
  const Kernels* kernels;
  bool (*runs)();
};

bool always() { return true; }

#if defined(__x86_64__)

// A table with other products; without a name where the compiler knew no instructions for them.
Kernels with_product(const char* name, Kernels kernels, ProductCodes product) {
  kernels.name = product ? name : nullptr;
  if (product) kernels.product_codes = product;
  return kernels;
}

const Kernels AVXVNNI = with_product("avxvnni", AVX2, AVXVNNI_PRODUCT), AMX = with_product("amx", AVX512, AMX_PRODUCT);

#endif

// The best last. What the system does not save for a thread is not supported either.
const Choice CHOICES[] = {
  {&PORTABLE, always},
#if defined(__x86_64__)
  {&AVX2, runs_avx2},
  {&AVXVNNI, runs_avxvnni},
  {&AVX512, runs_avx512},
  {&AMX, runs_amx},
#elif defined(__aarch64__)
  {&NEON, always},
  {&DOTPROD, runs_dotprod},
  {&I8MM, runs_i8mm},
#endif
};
constexpr int COUNT = sizeof CHOICES / sizeof *CHOICES;

bool runs(const Choice& choice) { return choice.kernels->name && choice.runs(); }

}  // namespace

const char* kernels_at(int number) {
  for (const Choice& choice : CHOICES)
    if (choice.kernels->name && number-- == 0) return choice.kernels->name;
  return nullptr;
}

const Kernels* kernels_named(const char* name) {
  for (const Choice& choice : CHOICES)
    if (runs(choice) && strcmp(choice.kernels->name, name) == 0) return choice.kernels;
  return nullptr;
}

const Kernels* choose_kernels() {
  if (const char* name = getenv("EDGELOOP_KERNELS"); name && *name) return kernels_named(name);
  for (int i = COUNT; i-- > 0;)
    if (runs(CHOICES[i])) return CHOICES[i].kernels;
  return nullptr;
}

}  // namespace edgeloop
