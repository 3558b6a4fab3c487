"""How engines round the inputs x [M, K] of a quantized matrix to int8 codes; here as the floats that codes stand for.

With these the reference engine computes what an artifact with int8 kernels computes: x̂ times the matrix. What is left
between the two is the order in which float32 is added up. Measured with onnxruntime 1.32 (AVX-512, 4 and 8 bits, groups
of 32, 64 and 128, K up to 4096): 1.3e-6 of the largest output, and 1.8e-5 for rows of one sign, whose large sums are
added and taken away again for the offset of the codes; inputs that are not rounded differ by 1e-2.

XNNPACK's kernels, from SSE4.1 to AVX-512, are within 1e-7; those of AVX-512 VNNI, in groups, within 1e-5.

That holds for one matrix and equal inputs. An input that lies near the middle between two codes may be rounded the
other way, by a whole step, when inputs differ in their last bits: 1.8e-3 of the largest output for K 64, 2.6e-4 for
4096; inputs that differ by 1e-6 have such a value in most calls with K 4096. ``jittered`` bounds the effect; where
every input is rounded at random, it is 1e-2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Rounding = Callable[[F32], F32]
"""From float numbers of quantization steps to whole ones, in any shape."""
_ONE, _STEPS = np.float32(1), np.float32(127)
_TINY = np.float32(3.8e-37)
_LOW, _HIGH = np.float32(-128), np.float32(127)


def nearest(steps: F32) -> F32:
    """Return ``steps`` rounded to the nearest whole number, halves to even."""
    return np.rint(steps)


def stochastic(random: np.random.Generator, width: float) -> Rounding:
    """Return a rounding that picks at random between the two whole numbers around a value near their middle.

    Values within ``width`` steps of the middle are affected, the nearer whole number being the likelier one; 0.5
    affects every value.
    """

    def rounded(steps: F32) -> F32:
        noise = random.random(steps.shape, np.float32) - np.float32(0.5)
        return np.rint(steps + noise * np.float32(2 * width))

    return rounded


def half_either_way(random: np.random.Generator) -> Rounding:
    """Return a rounding to one of the two float16 numbers around a value, at random, the nearer one being the likelier.

    What float16 does not hold becomes infinite.
    """

    def rounded(x: F32) -> F32:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            near = x.astype(np.float16)
            left = x - near.astype(np.float32)
            other = np.nextafter(near, np.copysign(np.float16(np.inf), left).astype(np.float16))
            share = np.abs(left) / np.abs(other.astype(np.float32) - near.astype(np.float32))
            return np.where(random.random(x.shape, np.float32) < share, other, near).astype(np.float32)

    return rounded


def blockwise(x: F32, group_size: int, whole: Rounding = nearest) -> F32:
    """Return x [M, K] rounded as MatMulNBits does at accuracy level 4: each group of columns to 1/127 of its largest.

    MLAS does so for 4 and 8 bits (QuantizeARow_CompInt8 in sqnbitgemm_kernel_avx2.cpp and …_avx512_int8.h), on
    x86-64 with AVX2. On a processor without it floats stay floats. ARM's kernel for 8 bits is the same; that for 4
    bits divides otherwise and rounds half away from zero, or is KleidiAI's, which takes whole rows and a zero
    point.
    """
    rows, columns = x.shape
    padded = np.pad(x, ((0, 0), (0, -columns % group_size))).reshape(rows, -1, group_size)
    peak = np.abs(padded).max(-1, keepdims=True)
    per_step = np.divide(_STEPS, peak, out=np.zeros_like(peak), where=peak > 0)
    kept: F32 = whole(padded * per_step) * (peak / _STEPS)
    return kept.reshape(rows, -1)[:, :columns]


def groupwise(x: F32, group_size: int, whole: Rounding = nearest) -> F32:
    """Return x [M, K] rounded as the lane engine does: as ``blockwise``, but tiny groups are zeros.

    ``group_size`` 0: a row is one group.

    The arithmetic is that of `quantize` in runtime/engines/native/src/kernels, bit for bit.
    """
    rows, columns = x.shape
    group = group_size or columns
    padded = np.pad(x, ((0, 0), (0, -columns % group))).reshape(rows, -1, group)
    peak = np.abs(padded).max(-1, keepdims=True)
    peak[peak < _TINY] = 0  # 127 / peak would be infinite
    per_step = np.divide(_STEPS, peak, out=np.zeros_like(peak), where=peak > 0)
    kept: F32 = whole(padded * per_step) * (peak / _STEPS)
    return kept.reshape(rows, -1)[:, :columns]


def rowwise_symmetric(x: F32, group_size: int = 0, whole: Rounding = nearest) -> F32:
    """Return x [M, K] rounded as our graphs with 8 bits and a scale a row do: each row to 1/127 of its largest value.

    QuantizeLinear takes x / peak in steps of 1/127, and the product is multiplied by the peak. ``group_size`` is
    ignored.
    """
    peak = np.abs(x).max(-1, keepdims=True)
    share = np.divide(x, peak, out=np.zeros_like(x), where=peak > 0)
    step = _ONE / _STEPS
    codes = np.clip(whole(share / step), _LOW, _HIGH)  # 128 of 255 is zero
    kept: F32 = codes * step * peak
    return kept


def rowwise_asymmetric(x: F32, group_size: int = 0, whole: Rounding = nearest) -> F32:
    """Return x [M, K] rounded as XNNPACK does: the range of each row, zero included, in 255 steps with a code for zero.

    The arithmetic is xnn_f32_qd8_asymmetric_quantization_params (src/params.c), in its order of operations.
    ``group_size`` is ignored.
    """
    low = np.minimum(x.min(-1, keepdims=True), np.float32(0))
    high = np.maximum(x.max(-1, keepdims=True), np.float32(0))
    step: F32 = np.where(low == high, _ONE, (high - low) / (_HIGH - _LOW)).astype(np.float32, copy=False)
    from_low, from_high = _LOW + low / step, _HIGH + high / step
    zero = np.where(from_low + from_high > 0, _LOW - low / step, _HIGH - high / step)
    zero = whole(np.clip(zero, _LOW, _HIGH))
    codes = np.clip(whole(x * (_ONE / step)) + zero, _LOW, _HIGH)
    kept: F32 = (codes - zero) * step
    return kept


def by_operator(x: F32, group_size: int, whole: Rounding = nearest) -> F32:
    """Return x [M, K] rounded as our graphs do: by MatMulNBits where the matrix has groups, by rows where it has
    none."""
    return blockwise(x, group_size, whole) if group_size else rowwise_symmetric(x, group_size, whole)


@dataclass(frozen=True)
class Activations:
    """How an engine rounds the inputs of quantized matrices."""

    codes: Callable[[F32, int, Rounding], F32]
    rounding: Rounding = nearest

    def __call__(self, x: F32, group_size: int) -> F32:
        """Return the values [..., K] that the codes of x [..., K] stand for; ``group_size`` is that of the matrix."""
        return self.codes(x.reshape(-1, x.shape[-1]), group_size, self.rounding).reshape(x.shape)

    def jittered(self, seed: int, width: float = 0.5) -> Activations:
        """Return the same with values within ``width`` steps of a middle rounded at random; 0.5: all values."""
        return replace(self, rounding=stochastic(np.random.default_rng(seed), width))


ACTIVATIONS = {
    "MatMulNBits": Activations(blockwise),
    "MatMulIntegerToFloat": Activations(rowwise_symmetric),
    "ONNX graphs": Activations(by_operator),
    "XNNPACK": Activations(rowwise_asymmetric),
    "lanes": Activations(groupwise),
}
"""By the operator or library that multiplies."""
