"""What ``edgeloop compare`` measures of each contender: bytes, and milliseconds a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Decoder:
    """One contender: ``decode(count)`` gives the milliseconds of each token after the prompt.

    ``host_share`` is the time outside the engine over that inside it, in all of its turns (staged only).
    """

    name: str
    group_size: int
    bytes: int
    decode: Callable[[int], list[float]]
    host_share: Callable[[], float] | None = None
