"""A proxy around an engine that writes down the calls of its stages: when each began, and what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Any

from ...runtime.engines.backend import F32, I64, Backend, Lanes
from ...runtime.engines.capabilities import Capabilities
from ...runtime.engines.kv import KVCache


@dataclass(frozen=True)
class StageCall:
    """A call of ``stage`` (a block's at ``depth``, else None) with so many new tokens, in nanoseconds."""

    stage: str
    depth: int | None
    tokens: int
    begin_ns: int
    ns: int

    @property
    def name(self) -> str:
        """How people call it; depths from 1."""
        return self.stage if self.depth is None else f"{self.stage}, depth {self.depth + 1}"


class LoggedBackend:
    """An engine whose stages' calls are in ``calls``; all else is the engine's own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: list[StageCall] = []

    @property
    def can(self) -> Capabilities:
        """The engine's, but whole prompts and tokens, whose stages nobody would see."""
        return replace(self._backend.can, whole_prompt=False, whole_tokens=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """As ``Backend``."""
        return self._logged("prologue", None, lanes, lambda: self._backend.prologue(ids, lanes, cache))

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """As ``Backend``."""
        depth = int(lanes.depth[0])
        return self._logged("block", depth, lanes, lambda: self._backend.block(state, lanes, cache))

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """As ``Backend``."""
        return self._logged(
            "epilogue", None, lanes, lambda: self._backend.epilogue(state, rows, lanes, cache)
        )

    def _logged(self, stage: str, depth: int | None, lanes: Lanes, call: Callable[[], F32]) -> F32:
        tokens, begin = int(lanes.tokens.sum()), perf_counter_ns()
        found = call()
        self.calls.append(StageCall(stage, depth, tokens, begin, perf_counter_ns() - begin))
        return found

    @property
    def spent(self) -> Counter[str]:
        """Nanoseconds by the calls' names."""
        found = Counter[str]()
        for call in self.calls:
            found[call.name] += call.ns
        return found
