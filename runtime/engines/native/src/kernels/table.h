// A table of this file's instruction set, made of the kernels that the headers before this one have defined.
#pragma once

#include "attention.h"
#include "attention_codes.h"
#include "attention_int4.h"
#include "codes.h"
#include "floats.h"
#include "vectors.h"

namespace {

void store_value_halves(const float* v, int32_t head_dim, int32_t token, void* values) {
  to_half(v, head_dim, static_cast<uint16_t*>(values) + token * head_dim);
}

constexpr Kernels table_named(const char* name) {
  return {name,
      quantize,
      product_codes,
      product_floats,
      matrix_row,
      rms_norm,
      layer_norm,
      {act<silu>, act<gelu>, act<gelu_tanh>, act<relu2>, act<sigmoid>, act<tanh_of>, act<softplus>, act<exp_of>,
          act<relu>},
      add,
      mul,
      scale,
      add_scaled,
      blend,
      softcap,
      rotate_halves,
      rotate_pairs,
      softmax,
      argmax,
      {attend<float>, attend<uint16_t>, attend_codes, attend<Int4>},
      {store_key_floats, store_key_halves, store_key_codes, store_key_int4},
      {store_value_floats, store_value_halves, store_value_codes, store_value_int4},
      to_half,
      to_float};
}

}  // namespace
