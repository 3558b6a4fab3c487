// A tile of int8 products in plain C++.
#pragma once

#include "codes.h"

namespace {

template <Kind kind, int M>
void codes_tile(const Factors& f, F* y) {
  constexpr int columns = kind == Kind::int4 ? 8 : 4;  // of 64 bytes
  const uint8_t* w = f.weights;
  for (int m = 0; m < M; m++) y[m] = set1(0.f);
  for (int32_t g = 0; g < f.groups; g++) {
    const int32_t from = g * f.group, to = from + f.group < f.stride ? from + f.group : f.stride;
    I sums[M];
    for (int m = 0; m < M; m++) sums[m] = set1(f.x_sums[m * f.groups + g]);
    for (int32_t k = from; k < to; k += columns, w += 64) {
      for (int m = 0; m < M; m++) {
        const int8_t* x = f.x + m * f.stride + k;
        for (int n = 0; n < LANES; n++) {
          int32_t s = 0;
          for (int j = 0; j < 4; j++) {
            const uint8_t byte = w[n * 4 + j];
            s += kind == Kind::int8 ? byte * x[j] : (byte & 15) * x[j] + (byte >> 4) * x[4 + j];
          }
          sums[m].v[n] += s;
        }
      }
    }
    const F scale = load_half(f.scales + g * LANES);
    for (int m = 0; m < M; m++) y[m] = y[m] + to_floats(sums[m]) * (scale * set1(f.x_scales[m * f.groups + g]));
  }
}

}  // namespace
