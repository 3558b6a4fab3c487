"""Requests that run, as a scheduler has them: what each wants of the engine next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..decode.sequence import TokenSequence
from ..decode.stage_call import StageCall
from ..engines.tokens import I64, Chooser, TokenDecoder


@dataclass(eq=False, slots=True)
class TokenCall:
    """``token`` goes through all depths that ``decoder`` sends it to. The answer is a ``Turned``.

    ``ends``: tokens that nothing is run behind. ``room``: tokens that are wanted still.
    """

    text: ClassVar[None] = None
    decoder: TokenDecoder
    chooser: Chooser
    ends: tuple[int, ...]
    token: int = -1
    room: int = 1


@dataclass(frozen=True, eq=False, slots=True)
class TextCall:
    """The piece ``text`` [n] of a prompt goes through all depths. The answer is a ``Turned``, with logits of the last
    token if the host chooses."""

    token: ClassVar[int] = -1
    ends: ClassVar[tuple[int, ...]] = ()
    room: ClassVar[int] = 1
    decoder: TokenDecoder
    chooser: Chooser
    text: I64


@dataclass(eq=False, slots=True)
class Task:
    """The calls of one request on ``sequence`` of the cache, which holds ``tokens``; each is sent its answer.

    ``ended`` is called once: with None, or with what the generator raised.
    """

    sequence: int
    tokens: TokenSequence
    calls: Generator[StageCall | TokenCall, Any, None]
    ended: Callable[[BaseException | None], None]
    served: int = field(default=0, init=False)
    """The tick in which it was added, or last had its turn."""
    prompt: bool = field(default=True, init=False)
    """Whether its calls are those of its prompt still."""


PendingCall = tuple[Task, StageCall]
"""A stage call that has not run yet, and whose it is."""
