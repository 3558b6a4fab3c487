"""Which tokens a router sends through which depths, while a text goes through a model layer by layer.

Two streams of the same windows follow one choice, that of the float model's states, so that what both are given at a
depth are the same tokens (``loop_gptq.py``). The rule is the one that generation has by default.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..runtime.decode.routing import ExpertChunk, Router, RoutingRule, TokenChunk, parse_routing
from ..runtime.engines.backend import F32, I64
from ..runtime.model.program import Program
from ..runtime.timing import LoopClock


class Choices(Router):
    """The router of one window: what it has said once, for the stream that was first, it says again."""

    def __init__(self, program: Program, heads: Mapping[str, F32]) -> None:
        super().__init__(program, heads)
        self._rule = parse_routing("router", program)
        self._said: dict[int, tuple[I64, F32]] = {}

    def enter(self, x: F32) -> ExpertChunk | TokenChunk:
        """Return the tokens whose states x [n, D] enter the loop together."""
        return self.chunk(self._rule, x.copy(), LoopClock(self.depths))

    def expert(self, rule: RoutingRule, depth: int, x: F32, chunk: int) -> tuple[I64, F32]:
        """Return the rows that go on and their gates, as ``Router`` does, of the stream that was first."""
        if depth not in self._said:
            self._said[depth] = super().expert(rule, depth, x, chunk)
        return self._said[depth]

    def token(self, rule: RoutingRule, x: F32) -> tuple[I64, F32]:
        """Return the last depths and the gates, as ``Router`` does, of the stream that was first."""
        if 0 not in self._said:
            self._said[0] = super().token(rule, x)
        return self._said[0]


class Routed:
    """A window of a stream on its way through the loop of a routed model."""

    def __init__(self, choices: Choices, shares_kv: bool, state: F32) -> None:
        """``state`` [n, D] enters the loop. With ``shares_kv`` all tokens run every depth, and it counts for the chosen
        ones: their K/V are depth 0's, which all have made."""
        self._chunk, self._all = choices.enter(state), shares_kv
        self._chosen: I64 = np.empty(0, np.int64)

    @property
    def positions(self) -> I64:
        """The tokens [m] that are run at this depth."""
        return np.arange(len(self._chunk.state)) if self._all else self._chosen

    @property
    def counted(self) -> I64 | slice:
        """Which of ``positions`` the router has sent there."""
        return self._chosen if self._all else slice(None)

    def enter(self, depth: int) -> F32:
        """Return the states [m, D] that ``depth`` is given."""
        self._chosen = self._chunk.choose(depth)
        found: F32 = self._chunk.state[self.positions]
        return found

    def leave(self, made: F32) -> None:
        """Take in what the depth has made of ``positions``, [m, D]."""
        self._chunk.update(made[self.counted])

    def output(self) -> F32:
        """Return the loop's output [n, D]."""
        return self._chunk.output()
