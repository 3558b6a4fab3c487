"""The ONNX Runtime engine: a graph for each stage, and one more that fills K and V in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..backend import F32, I64, Lanes, check_fill, fresh_tokens
from ..bundle import Bundle
from ..errors import EngineError
from ..kv import KVCache
from ..model.program import Program
from ..model.rotary import RotaryTables
from ..onnx_check import check_graph
from ..onnx_session import FillSession, GraphSession, use_threads
from ..packed import PackedLanes

PACKED = ".packed"
"""Ends the names of the graphs that take packed lanes."""


class OnnxBackend:
    """The Backend protocol on ONNX Runtime's CPU provider.

    Depths that share K and V: the attention operator (onnxruntime 1.32) reads a cache without writing it when key and
    value have no rows, and then takes one lane of S tokens or B lanes of one, without padding: see ``backend.py``.
    """

    name = "onnx"

    def __init__(
        self,
        program: Program,
        graphs: Mapping[str, Path],
        *,
        threads: int | None = None,
        packed: bool = False,
    ) -> None:
        """``graphs``: the file of each stage; ``fill`` may be missing, and is opened when it is first called.

        ``threads``: by default every core of this process. ``packed``: calls have packed lanes.
        """
        use_threads(threads)
        self.program = program
        suffix = PACKED if packed else ""
        if f"block{suffix}" not in graphs:
            raise EngineError(
                "the bundle has no packed graphs, which serving many users needs; export it again"
            )
        self.rotary = RotaryTables(program.rotations[0])
        """cos and sin of the positions that the largest cache so far has room for."""
        self._prologue, self._block, self._epilogue = (
            GraphSession(stage, output, graphs[f"{stage}{suffix}"], program, self.rotary)
            for stage, output in (("prologue", "state"), ("block", "next"), ("epilogue", "logits"))
        )
        self._shared = program.shares_kv
        self._fill_path = graphs.get("fill")
        self._fill: FillSession | None = None

    @staticmethod
    def open(bundle: Bundle, threads: int | None = None, packed: bool = False) -> OnnxBackend:
        """The graphs of ``bundle``; BundleError when one of them reads a file that is not the bundle's weights."""
        target = bundle.manifest.targets["onnx"]
        for stage, name in target.graphs.items():
            if stage == "fill" or stage.endswith(PACKED) == packed:
                check_graph(bundle, name, target.weights)
        graphs = {stage: bundle.path(name) for stage, name in target.graphs.items()}
        return OnnxBackend(bundle.program, graphs, threads=threads, packed=packed)

    @property
    def engine_ns(self) -> int:
        """Nanoseconds spent inside onnxruntime so far; all else of a token's time is the host's."""
        filling = self._fill.engine_ns if self._fill else 0
        return filling + sum(graph.engine_ns for graph in (self._prologue, self._block, self._epilogue))

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Caches of ``sequences`` × ``capacity`` tokens, zeroed."""
        return KVCache.allocate(self.program, sequences, capacity, slots)

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """ids [B, S] → state [B, S, D]; of packed lanes, as in every stage, [N, 1] → [N, 1, D]."""
        plan = self._prologue.plan(lanes, 0, cache)
        plan.ids[:] = ids
        return self._prologue.run(plan)

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] → state [B, S, D] after one pass, each lane at its own depth."""
        plan = self._block.plan(lanes, 0, cache)
        if self._shared:
            plan.fresh[0] = int(lanes.fresh) if isinstance(lanes, PackedLanes) else fresh_tokens(lanes)
        plan.set_state(state)
        return self._block.run(plan)

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """state [B, S, D] and flat rows [N] of B·S → logits [N, V]."""
        plan = self._epilogue.plan(lanes, len(rows), cache)
        plan.set_state(state)
        plan.rows[:] = rows
        return self._epilogue.run(plan)

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """K and V of ``state`` [B, S, D] as every layer's input, into the lanes' slots.

        UsageError for a model that has nothing to fill, EngineError for a bundle without the graph.
        """
        check_fill(self.program)
        if self._fill is None:
            if self._fill_path is None:
                raise EngineError("the bundle has no fill graph, which this policy needs; export it again")
            self._fill = FillSession(self._fill_path, self.program, self.rotary)
        self._fill.run(state, lanes, cache)
