"""The depth loop of Mixture-of-Recursions: at each depth only the tokens that their router sends there.

A slot of the block holds the tokens that ran its depth, at their true positions (recursion-wise caching, arXiv
2507.10524, section 2.2.2): a token that leaves after depth 0 costs depth 0. Where depths share K and V (recursive
sharing), the one slot holds all tokens, as depth 0 made them, and a deeper token sees those that left as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

from ..engines.backend import F32, I64
from .loop import DepthLoop, LogitRows
from .routing import Router, RoutingRule, shared_calls


class RoutedLoop:
    """Chunks and single tokens on a DepthLoop, routed."""

    def __init__(self, loop: DepthLoop, rule: RoutingRule, heads: Mapping[str, F32]) -> None:
        self.loop, self.rule = loop, rule
        self.router = Router(loop.backend.program, heads)
        self._shares = loop.backend.program.shares_kv

    def forward(self, ids: I64, rows: LogitRows = "last") -> tuple[F32, I64]:
        """Run ids [S] → logits [N, V] (``rows`` as in DepthLoop.forward), and the depths [S] that each token ran.

        ``chunk-topk`` takes its share of all S tokens, so it runs them as one chunk; the others in the loop's chunks.
        """
        ids = self.loop.checked(ids)
        size = len(ids) if self.rule.topk else self.loop.chunk
        depths = np.empty(len(ids), np.int64)
        kept = []
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            last = start + len(part) == len(ids)
            logits, depths[start : start + size] = self._pass(part, rows if last or rows == "all" else None)
            kept.append(logits.copy())
        return np.concatenate(kept) if rows == "all" else kept[-1], depths

    def _pass(self, ids: I64, rows: LogitRows) -> tuple[F32, npt.NDArray[np.int64]]:
        begin = perf_counter_ns()
        loop = self.loop
        x = loop.enter(ids)[0].copy()
        run = self._expert(x) if self.router.routing.kind == "expert" else self._token(x)
        logits = loop.read_out(x[None], loop.cached, rows)
        loop.cached += len(ids)
        if self._shares:
            loop.filled[:] = [loop.cached] * len(loop.filled)
        loop.clock.passes += 1
        loop.clock.total_ns += perf_counter_ns() - begin
        return logits, run

    def _expert(self, x: F32) -> I64:
        """x [S, D] is brought to the loop's output in place → depths run [S]."""
        run = np.zeros(len(x), np.int64)
        rows = np.arange(len(x))
        for depth in range(self.rule.stop):
            deciding = perf_counter_ns()
            chosen, gates = self.router.expert(self.rule, depth, x[rows], len(x))
            self.loop.clock.decided(deciding)
            rows = rows[chosen]
            if not len(rows) and (depth or not self._shares):
                break
            x[rows] += gates[:, None] * self._block(depth, x, rows)
            run[rows] += 1
        return run

    def _token(self, x: F32) -> I64:
        """As ``_expert``, for token choice."""
        deciding = perf_counter_ns()
        choice, gates = self.router.token(self.rule, x)
        self.loop.clock.decided(deciding)
        h = x.copy()
        for depth in range(int(choice.max()) + 1):
            rows = np.flatnonzero(choice >= depth)
            h[rows] = self._block(depth, h, rows)
        x += gates[:, None] * h
        run: I64 = choice + 1
        return run

    def _block(self, depth: int, x: F32, rows: I64) -> F32:
        """The chunk's x [S, D]: its ``rows`` [k] through one depth → [k, D]."""
        loop = self.loop
        if not self._shares:
            only: F32 = loop.at_depth(depth, x[rows][None], loop.cached + rows)[0]
            return only
        out = np.empty((len(rows), x.shape[1]), np.float32)
        positions = np.arange(loop.cached, loop.cached + len(x))
        for call, part in shared_calls(depth, rows, len(x)):
            out[part] = loop.at_depth(depth, x[None, call], positions[call])[0, rows[part] - call.start]
        return out
