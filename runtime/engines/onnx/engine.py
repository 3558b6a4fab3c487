"""The ONNX Runtime engine: a graph for each stage, and one more that fills in K/V."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ...bundle.folder import Bundle
from ...errors import EngineError
from ...model.program import Program
from ..backend import F32, I64, Lanes, check_fill, fresh_tokens
from ..kv import KVCache
from ..packed import PackedLanes
from . import CAPABILITIES
from .check import check_graph
from .session import FillSession, GraphSession, RotaryInputs, use_threads

PACKED = ".packed"
"""The end of the names of graphs that take packed lanes."""


def graph_name(stage: str, number: int = 0, packed: bool = False) -> str:
    """Return the name of a graph in a manifest; ``number`` is that of a loop's block."""
    return (f"{stage}.{number}" if number else stage) + (PACKED if packed else "")


class OnnxBackend:
    """The Backend protocol on ONNX Runtime's CPU provider.

    Depths that share K/V: the attention operator (onnxruntime 1.32) reads a cache without writing it when key and
    value have no rows, and then takes one lane of S tokens or B lanes of one, without padding: see ``backend.py``.
    """

    name = "onnx"
    can = CAPABILITIES

    def __init__(
        self,
        program: Program,
        graphs: Mapping[str, Path],
        *,
        threads: int | None = None,
        packed: bool = False,
        profiles: Path | None = None,
    ) -> None:
        """``graphs``: the file of each stage; ``fill`` may be missing, and is opened when it is first called.

        ``threads``: by default every core of this process. ``packed``: calls have packed lanes. ``profiles``: a folder
        for what every run's operators take, until ``end_profiles``.
        """
        use_threads(threads)
        self.program = program
        if graph_name("block", packed=packed) not in graphs:
            raise EngineError(
                "the bundle has no packed graphs, which serving many users needs; export it again"
            )
        self.rotary = RotaryInputs(program)
        """cos and sin of the positions that the largest cache so far has room for."""

        def session(stage: str, output: str, number: int = 0) -> GraphSession:
            name = graph_name(stage, number, packed)
            if name not in graphs:
                raise EngineError(f"the bundle has no graph {name}; export it again")
            return GraphSession(stage, output, graphs[name], program, self.rotary, profiles)

        self._prologue, self._epilogue = session("prologue", "state"), session("epilogue", "logits")
        self._blocks = [session("block", "next", number) for number in range(len(program.loop.blocks))]
        self._shared = program.shares_kv
        names = [graph_name("fill", number) for number in range(len(self._blocks))]
        self._fill_paths = [graphs[name] for name in names if name in graphs]
        self._fills: list[FillSession] = []

    @staticmethod
    def open(
        bundle: Bundle, threads: int | None = None, packed: bool = False, profiles: Path | None = None
    ) -> OnnxBackend:
        """Return the engine with the graphs of ``bundle``; BundleError when one reads a file that is not the
        bundle's weights."""
        target = bundle.manifest.targets["onnx"]
        for stage, name in target.graphs.items():
            if stage.partition(".")[0] == "fill" or stage.endswith(PACKED) == packed:
                check_graph(bundle, name, target.weights)
        graphs = {stage: bundle.path(name) for stage, name in target.graphs.items()}
        return OnnxBackend(bundle.program, graphs, threads=threads, packed=packed, profiles=profiles)

    def close(self) -> None:
        """Release the sessions, even while the engine is referred to."""
        for graph in self._graphs():
            graph.close()

    def _graphs(self) -> Iterator[GraphSession | FillSession]:
        yield from (self._prologue, *self._blocks, self._epilogue)
        yield from self._fills

    def end_profiles(self) -> dict[str, Path]:
        """Return onnxruntime's profile of each stage's graph, by its name in the manifest; only with ``profiles``."""
        found = {"prologue": self._prologue.end_profile(), "epilogue": self._epilogue.end_profile()}
        return found | {graph_name("block", n): block.end_profile() for n, block in enumerate(self._blocks)}

    @property
    def engine_ns(self) -> int:
        """Nanoseconds spent inside onnxruntime so far; all else of a token's time is the host's."""
        return sum(graph.engine_ns for graph in self._graphs())

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Return zeroed caches of ``sequences`` × ``capacity`` tokens."""
        return KVCache.allocate(self.program, sequences, capacity, slots)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the state [B, S, D] of ids [B, S]; of packed lanes, as in every stage, [N, 1] → [N, 1, D]."""
        plan = self._prologue.plan(lanes, 0, cache)
        plan.ids[:] = ids
        return self._prologue.run(plan)

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Return state [B, S, D] after one pass, each lane at its own depth."""
        block = self._blocks[0]
        if len(self._blocks) > 1:
            schedule = self.program.loop.schedule
            found = {schedule[depth] for depth in lanes.depth[lanes.tokens > 0].tolist()}
            if len(found) > 1:
                return self._lane_by_lane(state, lanes, cache)
            block = self._blocks[found.pop() if found else 0]
        plan = block.plan(lanes, 0, cache)
        if self._shared:
            plan.fresh[0] = int(lanes.fresh) if isinstance(lanes, PackedLanes) else fresh_tokens(lanes)
        plan.set_state(state)
        return block.run(plan)

    def _lane_by_lane(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Do what ``block`` does for lanes at depths of different blocks, which no graph takes in one call."""
        found, start = np.zeros_like(state), 0
        for b, n in enumerate(lanes.tokens.tolist()):
            if n:
                one, slot = slice(b, b + 1), lanes.first_slot + b
                # Without the room for other lanes' tokens: GroupQueryAttention takes no more rows than a lane has keys.
                arrays = lanes.depth[one], lanes.cached[one], lanes.tokens[one], lanes.positions[one, :n]
                rows: tuple[slice, ...] = (one, slice(n))
                if isinstance(lanes, PackedLanes):
                    rows, start = (slice(start, start + n),), start + n
                    alone: Lanes = PackedLanes(*arrays, slot, shared=lanes.shared, fresh=lanes.fresh)
                else:
                    alone = Lanes(*arrays, slot)
                found[rows] = self.block(state[rows], alone, cache)
        return found

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the logits [N, V] of the flat rows ``rows`` [N] of state [B, S, D]."""
        plan = self._epilogue.plan(lanes, len(rows), cache)
        plan.set_state(state)
        plan.rows[:] = rows
        return self._epilogue.run(plan)

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """Write K/V of ``state`` [B, S, D], as every layer's input, into the lanes' slots.

        UsageError for a model that has nothing to fill, EngineError for a bundle without the graph.
        """
        check_fill(self.program)
        if not self._fills:
            if len(self._fill_paths) < len(self._blocks):
                raise EngineError("the bundle has no fill graph, which this policy needs; export it again")
            self._fills = [FillSession(path, self.program, self.rotary) for path in self._fill_paths]
        schedule = self.program.loop.schedule
        for number, graph in enumerate(self._fills):
            graph.run(state, lanes, cache, [d for d, block in enumerate(schedule) if block == number])
