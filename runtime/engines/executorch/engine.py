"""The ExecuTorch engine: methods with fixed numbers of rows, on the caches of the host, without torch.

The lanes of a call run as calls of mN methods, whose rows have depths and caches of their own, or chunk by chunk.
Caches are read where they are; new K/V come out, and the bridge copies them into the caches. The weights are in
memory once for all methods: the bridge switches XNNPACK's weight cache on, and the file is mapped.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from time import perf_counter_ns
from weakref import WeakKeyDictionary

import numpy as np

from ...bundle.folder import Bundle
from ...errors import BundleError, EngineError
from ...model.ops import Embed, weight_fields
from ...model.program import Program
from ...model.weights import Matrix
from ..backend import F32, I64, Lanes, check_fill, fresh_tokens
from ..kv import GrowingPairs, KVCache
from ..packed import PackedLanes
from . import CAPABILITIES
from .binding import Binding, Rotary, rows_of
from .bridge import Bridge, PteBinding
from .calls import Batch, batches, valid_runs, whole_runs
from .kinds import head_columns, kinds, lookups, numbered, signature_of, whole_lanes
from .layout import EmbeddingTable, Layout, read_layout
from .table import Embedding

_BINDINGS = 128
"""Bindings kept for a cache: each has input buffers of its own."""
WORTH_SHARING = 1 << 20
"""Weights of a matrix from which a second thread pays: 40 µs of one core, where meeting after an operator takes 5 to
50."""


class ExecutorchBackend:
    """The Backend protocol on ExecuTorch with XNNPACK. Packed lanes are treated like others."""

    name = "executorch"
    can = CAPABILITIES

    def __init__(
        self,
        program: Program,
        folder: Path,
        layout: Layout,
        *,
        threads: int | None = None,
        profiled: bool = False,
    ) -> None:
        """``folder``: where the files of ``layout`` lie. ``threads``: by default ``default_threads``, or as many as the
        pool has that this process has already; see ``Bridge``.

        ``profiled``: calls are traced, see ``Bridge.write_profiles``.
        """
        self.program, self.layout, self._shared = program, layout, program.shares_kv
        self.bridge = Bridge(
            folder / layout.program,
            [folder / name for name in layout.data],
            threads or -default_threads(program),
            profiled,
        )
        self._signatures = {kind: signature_of(program, kind) for kind in kinds(program)}
        self._whole, self._blocks = whole_lanes(program), len(program.loop.blocks)
        self._prefix = program.prefix_lm
        self._columns = head_columns(program)
        self._check(folder)
        self._tables = [
            self._table(op, folder, table) for op, table in zip(lookups(program), layout.tables, strict=True)
        ]
        self._rotary = Rotary(program)
        self._bindings: WeakKeyDictionary[KVCache, dict[tuple[str, tuple[int, ...]], Binding]]
        self._bindings = WeakKeyDictionary()
        self._heads: dict[str, tuple[PteBinding, F32, F32]] = {}
        self.engine_ns = 0
        """Nanoseconds spent in calls of methods so far; all else of a token's time is the host's."""

    @staticmethod
    def open(bundle: Bundle, threads: int | None = None, profiled: bool = False) -> ExecutorchBackend:
        """Return the engine with the model of ``bundle``; BundleError when its program is not the model's."""
        target = bundle.manifest.targets["executorch"]
        path = bundle.path(target.graphs["layout"])
        layout = read_layout(path, bundle.manifest.program)
        for name in (layout.program, layout.embedding.file, *layout.data):
            bundle.beside(target.graphs["layout"], name)
        try:
            return ExecutorchBackend(bundle.program, path.parent, layout, threads=threads, profiled=profiled)
        except EngineError as error:
            installed = importlib.metadata.version("executorch")
            if installed == layout.version:
                raise
            raise EngineError(
                f"{error}; it was made by executorch {layout.version}, and {installed} is installed"
            ) from error

    def close(self) -> None:
        """Release the program, its packed weights and the mapped embedding, even while the engine is referred to."""
        self._bindings.clear()
        self._heads.clear()
        self.bridge.close()
        for *_, table in self._tables:
            table.close()

    def _table(self, op: Embed, folder: Path, table: EmbeddingTable) -> tuple[str, str, Embedding]:
        """Return the value that ``op`` writes, the host value that it looks up, and the table's rows."""
        matrix = self.program.matrix(op.table)
        rows = Embedding(folder / table.file, table, matrix.rows, matrix.columns, op.scale)
        return op.y, op.ids, rows

    def _check(self, folder: Path) -> None:
        """Raise BundleError unless the head of the .pte is that of the program."""
        program, name = self.program, "head_m1"
        if "head" not in self._signatures:  # it gives states
            return
        found = [self.bridge.sizes(name, 0), self.bridge.sizes(name, 0, output=True)]
        wanted = self._signatures["head"].width, program.vocab_size
        if found != [[1, wanted[0]], [1, wanted[1]]]:
            raise BundleError(
                f"{folder / self.layout.program} has a head of {found[0][-1:]} → {found[1][-1:]}, wanted "
                f"[{wanted[0]}] → [{wanted[1]}]; it is from another bundle, copy the bundle again"
            )

    def new_cache(self, sequences: int, capacity: int, slots: int | None = None) -> KVCache:
        """Return zeroed caches of ``sequences`` × ``capacity`` tokens; a method reads all rows that they are laid
        out for."""
        cache = KVCache.allocate(
            self.program, sequences, max(capacity, 2), slots
        )  # a method's C is at least 2
        for stage, pairs in cache.stages.items():
            cache.stages[stage] = GrowingPairs(pairs)
        return cache

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the state [B, S, D] of ids [B, S]."""
        found = {
            name: table.rows((ids if which == "ids" else _of_rows(lanes, which)).reshape(-1))
            for name, which, table in self._tables
        }
        computes = "prologue" in self._signatures
        parts = [*found.values()] if computes else [found[name] for name in self.program.prologue.outputs]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
        state = rows.reshape(*ids.shape, -1)
        return self._run("prologue", state, lanes, cache) if computes else state

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Return state [B, S, D] after one pass, each lane at its own depth."""
        reads = False
        if self._shared:
            reads = not (lanes.fresh if isinstance(lanes, PackedLanes) else fresh_tokens(lanes))
        return self._looped("read" if reads else "block", state, lanes, cache)

    def _looped(self, name: str, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Return state [B, S, D] after the methods of the lanes' depths: those of one block after those of the
        other."""
        if self._blocks == 1:
            return self._run(name, state, lanes, cache)
        schedule = self.program.loop.schedule
        numbers = sorted({schedule[depth] for depth in lanes.depth[lanes.tokens > 0].tolist()})
        found = [self._run(numbered(name, number), state, lanes, cache, number) for number in numbers]
        return found[0] if len(found) == 1 else np.sum(found, 0)  # zeros where lanes are at another's depths

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        """Return the logits [N, V] of the flat rows ``rows`` [N] of state [B, S, D]."""
        if "epilogue" in self._signatures:
            state = self._run("epilogue", state, lanes, cache)
        return self._head(state.reshape(-1, state.shape[-1])[rows])

    def fill(self, state: F32, lanes: Lanes, cache: KVCache) -> None:
        """Write K/V of ``state`` [B, S, D], as every layer's input, into the lanes' slots."""
        check_fill(self.program)
        self._looped("fill", state, lanes, cache)

    def _run(self, kind: str, state: F32, lanes: Lanes, cache: KVCache, only: int | None = None) -> F32:
        """Return state [B, S, D] after a kind of method on its valid rows; ``only``: those of lanes of that block's
        depths."""
        rows, shape = state.reshape(-1, state.shape[-1]), (*state.shape[:-1], self._signatures[kind].gives)
        if only is None and len(rows) == 1 == len(lanes.tokens) == lanes.tokens[0]:
            return self._single(kind, rows, lanes, cache).reshape(shape)
        shapes, runs, schedule = self.layout.shapes, valid_runs(lanes), self.program.loop.schedule
        if only is not None:
            runs = [run for run in runs if schedule[lanes.depth[run.lane]] == only]
        if self._whole:
            calls = list(whole_runs(runs, shapes.chunk))
        else:
            begin = [run for run in runs if self._prefix and not lanes.cached[run.lane] and run.count > 1]
            rest = [run for run in runs if run not in begin]
            calls = [*whole_runs(begin, shapes.chunk), *batches(rest, shapes.counts(kind)[-1], shapes.chunk)]
        if len(calls) == 1 and calls[0].rows == len(rows):
            return self._call(kind, calls[0], rows, lanes, cache).reshape(shape)
        out = np.zeros((len(rows), shape[-1]), np.float32)
        for batch in calls:
            found = self._call(kind, batch, rows, lanes, cache)
            start = 0
            for run in batch.runs:
                out[run.row : run.row + run.count] = found[start : start + run.count]
                start += run.count
        return out.reshape(shape)

    def _single(self, kind: str, row: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Return row [1, D] after a method: one token of one lane, which is what decoding runs."""
        cache.reserve(int(lanes.cached[0]) + 1)
        binding = self._binding(kind, f"{kind}_m1", False, (lanes.first_slot,), cache)
        start = perf_counter_ns()
        out = binding.run(row, lanes.depth, lanes.positions[0], lanes.cached)
        self.engine_ns += perf_counter_ns() - start
        return out

    def _call(self, kind: str, batch: Batch, rows: F32, lanes: Lanes, cache: KVCache) -> F32:
        """Return the rows [n, D] of ``batch`` after one call."""
        runs = batch.runs
        slots = tuple(lanes.first_slot + run.lane for run in runs)
        name = f"{kind}_prefill" if batch.chunk else f"{kind}_m{len(runs)}"
        cache.reserve(max(int(lanes.cached[run.lane]) + run.token + run.count for run in runs))
        binding = self._binding(kind, name, batch.chunk, slots, cache)
        if len(runs) == 1:
            run = runs[0]
            part, span = slice(run.row, run.row + run.count), slice(run.token, run.token + run.count)
            state, positions = rows[part], lanes.positions[run.lane, span]
            depth = np.repeat(lanes.depth[run.lane : run.lane + 1], run.count)
            cached = lanes.cached[run.lane] + np.arange(run.token, run.token + run.count, dtype=np.int32)
        else:  # of one token each
            which = [run.lane for run in runs]
            tokens = np.array([run.token for run in runs], np.int32)
            state, positions = rows[[run.row for run in runs]], lanes.positions[which, tokens]
            depth, cached = lanes.depth[which], lanes.cached[which] + tokens
        start = perf_counter_ns()
        out = binding.run(state, depth, positions, cached)
        self.engine_ns += perf_counter_ns() - start
        return out

    def _binding(self, kind: str, name: str, chunk: bool, slots: tuple[int, ...], cache: KVCache) -> Binding:
        bindings = self._bindings.setdefault(cache, {})
        binding = bindings.pop((name, slots), None)
        if binding is None or binding.cache_rows != rows_of(cache, kind):
            rows, takes = self.layout.shapes.chunk if chunk else len(slots), self._signatures[kind]
            binding = Binding(
                self.bridge, self.program, takes, kind, name, rows, cache, slots, chunk, self._rotary
            )
            while len(bindings) >= _BINDINGS:
                bindings.pop(next(iter(bindings)))
        bindings[name, slots] = binding  # behind all others: the first was not used for longest
        return binding

    def _head(self, state: F32) -> F32:
        """Return the logits [N, V] of state [N, D]."""
        if "head" not in self._signatures:
            return state[:, self._columns]
        most, chunk = self.layout.shapes.counts("head")[-1], self.layout.shapes.chunk
        if len(state) in (1, most):
            return self._head_call(f"head_m{len(state)}", len(state), state)
        found, start = np.empty((len(state), self.program.vocab_size), np.float32), 0
        while start < len(state):
            left = len(state) - start
            name, size = (f"head_m{most}", most) if left <= 4 * most else ("head_prefill", chunk)
            count = min(size, left)
            found[start : start + count] = self._head_call(name, size, state[start : start + count])
            start += count
        return found

    def _head_call(self, name: str, rows: int, state: F32) -> F32:
        if name not in self._heads:
            inputs = np.zeros((rows, self._signatures["head"].width), np.float32)
            logits = np.zeros((rows, self.program.vocab_size), np.float32)
            self._heads[name] = self.bridge.plan(name, [inputs], [logits], [], 1, []), inputs, logits
        plan, inputs, logits = self._heads[name]
        inputs[: len(state)] = state
        start = perf_counter_ns()
        self.bridge.run(plan, 0)
        self.engine_ns += perf_counter_ns() - start
        return logits[: len(state)]


def _of_rows(lanes: Lanes, which: str) -> I64:
    """Return ``positions`` or ``types`` of the rows of a state: [B, S], or [N] of packed lanes."""
    found = lanes.positions if which == "positions" else lanes.types
    found = np.zeros_like(lanes.positions) if found is None else found
    return found.reshape(-1)[lanes.kept] if isinstance(lanes, PackedLanes) else found


def default_threads(program: Program) -> int:
    """Return the cores that this process may use; one where no matrix is worth the wait for a second one."""
    outside = {name for op in (*program.prologue.ops, *program.head.ops) for _, name in weight_fields(op)}
    sizes = [
        w.rows * w.columns for n, w in program.weights.items() if isinstance(w, Matrix) and n not in outside
    ]
    if max(sizes, default=0) < WORTH_SHARING:
        return 1
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1
