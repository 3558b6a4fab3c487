// What this processor and its system run, one function for each table of kernels that not every processor of its kind has.
#pragma once

namespace edgeloop {

#if defined(__x86_64__)
bool runs_avx2();     // and F16C
bool runs_avxvnni();  // and AVX2 and F16C
bool runs_avx512();   // F, BW, VL, DQ and VNNI
bool runs_amx();      // and its tiles of int8, which the system is asked for
#elif defined(__aarch64__)
bool runs_dotprod();
bool runs_i8mm();  // and dot products
#endif

}  // namespace edgeloop
