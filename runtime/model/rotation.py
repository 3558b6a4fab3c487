"""The parameters of a rotary embedding (RoPE, arXiv 2104.09864), as data."""

from __future__ import annotations

from msgspec import Struct


class Interpolated(Struct, frozen=True, forbid_unknown_fields=True, tag_field="rule", tag="linear"):
    """Every frequency divided by ``factor`` (position interpolation, arXiv 2306.15595)."""

    factor: float


class Llama3(Struct, frozen=True, forbid_unknown_fields=True, tag_field="rule", tag="llama3"):
    """Low frequencies divided by ``factor``, high ones kept, those between blended (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


class Yarn(Struct, frozen=True, forbid_unknown_fields=True, tag_field="rule", tag="yarn"):
    """Frequencies blended by the number of rotations, and cos and sin times ``amplitude`` (YaRN, arXiv 2309.00071)."""

    factor: float
    original_context: int
    amplitude: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0


Scaling = Interpolated | Llama3 | Yarn


class Rotation(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Pair i of the first ``dims`` dims of a head is rotated by position · theta^(−2i/dims), changed by ``scaling``."""

    dims: int
    theta: float
    scaling: Scaling | None = None
