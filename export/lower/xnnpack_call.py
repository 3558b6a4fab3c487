"""What the ops of one call share, beside the values of the program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...runtime.engines.executorch.kinds import Mask, RotaryInput

Pair = tuple[Tensor, Tensor]


@dataclass
class Call:
    """A call of M rows (tokens): of one lane each, or of one lane if ``chunk``.

    ``depth``: one-hot [M, R], or None where nothing differs. ``columns``: of deltas of rank r, one-hot for each row's
    depth [M, R·r]. ``cos_sin``: both [M, 1, dims], sin negative where a dim is the first of its pair.
    ``masks``: of each lane, by the number of query heads of a KV head too, see ``xnnpack_attend.py``. ``caches``: by
    their numbers, (K, V) [K heads, C, d] of each lane. ``new``: the K and V [M, K heads, d] that the call makes, by
    the caches' numbers.
    """

    depth: Tensor | None = None
    columns: Mapping[int, Tensor] = field(default_factory=dict)
    cos_sin: Mapping[RotaryInput, Pair] = field(default_factory=dict)
    masks: Mapping[tuple[Mask, int], Sequence[Tensor]] = field(default_factory=dict)
    caches: Sequence[Sequence[Pair]] = ()
    chunk: bool = False
    new: dict[int, Pair] = field(default_factory=dict)

    @property
    def one_hot(self) -> Tensor:
        """``depth``, which something that differs between depths needs."""
        assert self.depth is not None
        return self.depth
