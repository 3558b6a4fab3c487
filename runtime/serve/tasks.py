"""Requests that run, as a scheduler has them: what each wants of the engine next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..decode.stage_call import StageCall
from ..engines.tokens import TokenDecoder

TOKEN = "token"
"""The stage of calls that run a whole token and choose the next one."""


@dataclass(eq=False, slots=True)
class TokenCall:
    """``token`` goes through all depths that ``decoder`` sends it to.

    The answer is a ``Turned``. ``chooses``: whether the decoder chooses the next token; else the answer has logits.
    """

    stage: ClassVar[str] = TOKEN
    decoder: TokenDecoder
    chooses: bool
    token: int = -1


@dataclass(eq=False, slots=True)
class Task:
    """The calls of one request on ``sequence`` of the cache, each of which is sent its answer.

    ``ended`` is called once: with None, or with what the generator raised.
    """

    sequence: int
    calls: Generator[StageCall | TokenCall, Any, None]
    ended: Callable[[BaseException | None], None]
    served: int = field(default=0, init=False)
    """The tick in which it was added, or last had its turn."""
    prompt: bool = field(default=True, init=False)
    """Whether its calls are those of its prompt still."""


PendingCall = tuple[Task, StageCall]
"""A stage call that has not run yet, and whose it is."""
