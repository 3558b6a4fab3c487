"""One sequence under a policy: the full loop, early exit, routing or a pipeline behind one pair of calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..engines.backend import F32, I64
from .early import EarlyExit
from .exits import ExitRule
from .loop import DepthLoop, LogitRows
from .pipeline import Pipeline
from .policy import Policy
from .routed import RoutedLoop
from .routing import RoutingRule


class Walk:
    """One sequence on a loop under a policy."""

    def __init__(
        self,
        loop: DepthLoop,
        policy: Policy,
        heads: Mapping[str, F32],
        pipelined: Pipeline | None = None,
    ) -> None:
        """``pipelined``: what steps, on the same loop and under the same policy (``pipeline.py``)."""
        self.loop = loop
        self.depth = loop.backend.program.depths
        """Depths that the last token ran."""
        self.early: EarlyExit | None = None
        self.routed: RoutedLoop | None = None
        self.pipelined = pipelined
        rule = policy.rule
        if isinstance(rule, RoutingRule):
            self.routed = RoutedLoop(loop, rule, heads)
        elif isinstance(rule, ExitRule) and not rule.never and pipelined is None:
            self.early = EarlyExit(loop, rule, heads, policy.skipped_kv)

    def prompt(self, ids: I64, rows: LogitRows = "last") -> F32:
        """A prompt's ids [S] → logits [N, V]: at full depth, or routed."""
        if self.routed is None:
            logits = self.loop.forward(ids, rows)
        else:
            logits, depths = self.routed.forward(ids, rows)
            self.depth = int(depths[-1])
        if self.pipelined is not None:
            self.pipelined.begin(ids)
        return logits

    def step(self, token: int) -> tuple[F32, int]:
        """One more token → logits [1, V], and the depths that it ran."""
        if self.early is not None:
            return self.early.step(token)
        if self.pipelined is not None:
            logits = self.pipelined.step(token)
            return logits, self.pipelined.depth
        return self.prompt(np.array([token], np.int64)), self.depth

    def every(self, ids: I64) -> Iterator[tuple[F32, int]]:
        """Each of ids [S] in turn; ``chunk-topk`` needs to see all of them at once."""
        if self.early is not None:
            self.early.reset()
        if self.routed is not None and self.routed.rule.topk:
            logits, depths = self.routed.forward(ids, "all")
            yield from ((logits[i : i + 1], int(depths[i])) for i in range(len(ids)))
            return
        for token in ids:
            yield self.step(int(token))
