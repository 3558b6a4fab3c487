#include "rotary.h"

#include <cmath>

namespace edgeloop {

void turn(double angle, double& cosine, double& sine) {
  // π/2 in three parts, the first two of 33 bits: whole multiples of them are exact up to 2^20 quarters.
  constexpr double FIRST = 0x1.921fb544p+0, SECOND = 0x1.0b4611a6p-34, REST = 0x1.3198a2e037073p-69;
  constexpr double PER_QUARTER = 0x1.45f306dc9c883p-1, TO_WHOLE = 0x1.8p+52;
  const double quarters = angle * PER_QUARTER + TO_WHOLE - TO_WHOLE;
  const double x = ((angle - quarters * FIRST) - quarters * SECOND) - quarters * REST, y = x * x;
  // Taylor's series: for |x| ≤ π/4 what is left out is below 2^-53.
  constexpr double SINE[] = {1.0, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800,
      -1.0 / 1307674368000};
  constexpr double COSINE[] = {1.0,           -1.0 / 2,         1.0 / 24,          -1.0 / 720,           1.0 / 40320,
                               -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000};
  double s = 0, c = 0;
  for (int i = 7; i >= 0; i--) s = s * y + SINE[i];
  for (int i = 8; i >= 0; i--) c = c * y + COSINE[i];
  s *= x;
  const int quarter = std::fabs(quarters) < 0x1p+62 ? int(int64_t(quarters) & 3) : 0;
  const double sines[] = {s, c, -s, -c}, cosines[] = {c, -s, -c, s};
  sine = sines[quarter];
  cosine = cosines[quarter];
}

Turns::Turns(const Model& model) : model_(&model), pieces_(model.rotations.count) {}

void Turns::make(uint32_t position) {
  const uint32_t piece = position / PIECE;
  for (uint32_t r = 0; r < pieces_.size(); r++) {
    if (pieces_[r].size() <= piece) pieces_[r].resize(piece + 1);
    if (pieces_[r][piece]) continue;
    const file::Rotation& rotation = model_->rotations[r];
    const uint32_t pairs = rotation.dims / 2;
    std::unique_ptr<float[]> made(new float[size_t(PIECE) * rotation.dims]);
    for (uint32_t p = 0; p < PIECE; p++) {
      float* row = made.get() + size_t(p) * rotation.dims;
      for (uint32_t i = 0; i < pairs; i++) {
        double cosine, sine;
        turn(double(piece * PIECE + p) * model_->frequencies[rotation.first_frequency + i], cosine, sine);
        row[i] = float(cosine * rotation.amplitude);
        row[pairs + i] = float(sine * rotation.amplitude);
      }
    }
    pieces_[r][piece] = std::move(made);
  }
}

}  // namespace edgeloop
