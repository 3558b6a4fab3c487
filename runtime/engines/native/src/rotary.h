// Rotary embeddings: cos and sin of position · frequency, the same bits on every machine.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model.h"

namespace edgeloop {

// The sine and cosine of an angle, within a rounding of double precision while it is below 2^30; NaN of what is no
// finite number. Made of sums and products alone, so that no library's version matters.
void turn(double angle, double& cosine, double& sine);

// Of the rotations of a model, made for positions as they are met and kept.
class Turns {
 public:
  explicit Turns(const Model& model);
  // Make those of a position; throws std::bad_alloc.
  void make(uint32_t position);
  // cos [dims / 2], then sin, of a position that was made.
  const float* at(uint32_t rotation, uint32_t position) const {
    return pieces_[rotation][position / PIECE].get() + size_t(position % PIECE) * model_->rotations[rotation].dims;
  }

 private:
  static constexpr uint32_t PIECE = 64;  // positions that are made together
  const Model* model_;
  std::vector<std::vector<std::unique_ptr<float[]>>> pieces_;  // by rotation
};

}  // namespace edgeloop
