"""Parity: an engine over the exported artifact against the reference engine, after every depth.

Both run the same tokens the way the runtime does: a prompt in two chunks, then a single token; then one
call of several lanes, each at another depth where the model allows it; then the K/V that are filled in for
skipped depths. An encoder runs whole texts (``whole_texts.py``). Differences are relative to the largest absolute
value.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ..runtime.decode.sequential import SequentialDecoder
from ..runtime.engines.backend import F32, Backend, Lanes, can_fill
from ..runtime.engines.kv import KVCache
from ..runtime.engines.packed import PackedLanes
from ..runtime.engines.reference.engine import ReferenceBackend
from ..runtime.errors import ParityError
from ..runtime.model.activations import Activations
from ..runtime.model.program import STAGES, Program
from ..runtime.model.sizes import kept_sizes
from .bounds import REPORT, bounds, difference
from .whole_texts import whole_texts

CHUNKS = (7, 4, 1)


@dataclass(frozen=True)
class Trace:
    """States [tokens, D] after each depth, logits [tokens, V], the states of a call of R lanes, filled K/V."""

    per_depth: list[F32]
    logits: F32
    mixed: F32
    filled: F32 | None = None

    @property
    def arrays(self) -> list[F32]:
        """All arrays."""
        filled = [] if self.filled is None else [self.filled]
        return [*self.per_depth, self.logits, self.mixed, *filled]

    @property
    def names(self) -> list[str]:
        """The names of ``arrays``, for messages."""
        depths = [f"the state after depth {d}" for d in range(len(self.per_depth))]
        filled = [] if self.filled is None else ["filled-in K/V"]
        return [*depths, "the logits", "a call of mixed depths", *filled]


def trace(backend: Backend, seed: int = 0) -> Trace:
    """Run the schedule on ``backend`` and return its results."""
    program = backend.program
    random = np.random.default_rng(seed)
    if program.encoder:
        return Trace(*whole_texts(backend, random))
    # A short cache: some engines copy it in each layer, which a context of 100,000 tokens would not survive.
    capacity = min(sum(CHUNKS) + 1, program.context_length)
    ids = random.integers(0, program.vocab_size, max(capacity - 1, 1), dtype=np.int64)
    cache = backend.new_cache(1, capacity)
    states: dict[int, list[F32]] = defaultdict(list)
    decoder = SequentialDecoder(
        backend, cache, observe=lambda depth, state: states[depth].append(state[0].copy())
    )
    logits, start = [], 0
    for chunk in CHUNKS:
        part = ids[start : start + chunk]
        if len(part):
            rows = decoder.prompt(part, rows="all")
            assert rows is not None
            logits.append(rows.copy())
        start += chunk
    state, lanes = _mixed_lanes(program, capacity - 1, random)
    if program.shares_kv:
        cache = _random_cache(backend, lanes, capacity, random)
    mixed = backend.block(state, lanes, cache).copy()
    filled = _filled(backend, min(3, capacity), random) if can_fill(program) else None
    return Trace(
        [np.concatenate(states[d]) for d in range(program.depths)], np.concatenate(logits), mixed, filled
    )


def trace_packed(backend: Backend, seed: int = 0) -> list[F32]:
    """Return the outputs of each stage for packed lanes of three sequences, and the block's caches after it.

    Some lanes are idle, and where the operator allows it one has two tokens. An encoder, which has no packed lanes,
    gives none.
    """
    program, random = backend.program, np.random.default_rng(seed)
    if program.encoder:
        return []
    shared = program.shares_kv
    capacity, slots = max(min(8, program.context_length), 2), program.kv_slots
    cache = backend.new_cache(3, capacity)
    tokens = np.array([1 if shared or program.context_length < 2 else 2, 0, 1], np.int32)
    length = int(tokens.max())
    cached = np.array([1, 0, 0], np.int32) if program.context_length > 2 else np.zeros(3, np.int32)
    positions = cached[:, None] + np.arange(length)
    for stage in STAGES:
        per_sequence = slots if stage == "block" else 1
        _randomize(cache, program, stage, cached.repeat(per_sequence).tolist(), capacity, random)
    for stage in STAGES:  # what is kept of sequence 0, at each depth
        rows = [random.standard_normal(size).astype(np.float32) for size in kept_sizes(program, stage)]
        for slot in range(slots if stage == "block" else 1):
            cache.write_last(stage, slot, int(cached[0]), rows if cached[0] else [])
    outside = PackedLanes(np.zeros(3, np.int64), cached, tokens, positions)
    ids = random.integers(0, program.vocab_size, (outside.rows, 1), dtype=np.int64)
    state = random.standard_normal((outside.rows, 1, program.width)).astype(np.float32)
    found = [backend.prologue(ids, outside, cache).copy()]
    for fresh in (True, False) if shared else (True,):
        # Sequence 0 at its last depth and sequence 2 at depth 0, unless they may not meet in a call.
        depths = [0, 0] if shared and fresh else [program.depths - 1, 1 if shared else 0]
        places = [slots - 1, 2 * slots]
        lanes = PackedLanes.empty(3 * slots, length, outside.rows, shared=shared, fresh=fresh)
        lanes.tokens[:] = 0
        for place, sequence, depth in zip(places, (0, 2), depths, strict=True):
            lanes.depth[place], lanes.tokens[place] = depth, tokens[sequence]
            lanes.cached[place], lanes.positions[place] = cached[sequence], positions[sequence]
        lanes.refresh()
        found.append(backend.block(state, lanes, cache).copy())
    for place, s in zip(places, (0, 2), strict=True):
        for pair in cache.read_rows("block", place, int(cached[s]), int(tokens[s])):
            found += pair
    found.append(backend.epilogue(state, np.arange(outside.rows), outside, cache).copy())
    return found


def _mixed_lanes(program: Program, length: int, random: np.random.Generator) -> tuple[F32, Lanes]:
    """Return a state and lanes with one lane a depth, as pipelined decoding has them: deeper lanes are further behind.

    Where depth 0 has to go first, because the depths share its K/V, it is left out. Where a row of the token before
    is kept, no lane is behind another.
    """
    depths = np.arange(program.depths)
    behind = np.zeros_like(depths) if program.kept_rows else depths
    cached = np.maximum(length - behind, 0).astype(np.int32)
    if program.shares_kv:
        depths = np.maximum(depths, 1)
    state = random.standard_normal((program.depths, 1, program.width)).astype(np.float32)
    ones = np.ones(program.depths, np.int32)
    return state, Lanes(depths.astype(np.int64), cached, ones, cached[:, None].astype(np.int64))


def _random_cache(backend: Backend, lanes: Lanes, capacity: int, random: np.random.Generator) -> KVCache:
    """Return a cache with a sequence for each of ``lanes``, whose rows are random up to the one that depth 0 wrote."""
    program = backend.program
    cache = backend.new_cache(program.depths, capacity)
    tokens = (lanes.cached + 1).repeat(cache.slots).tolist()
    _randomize(cache, program, "block", tokens, capacity, random)
    return cache


def _randomize(
    cache: KVCache,
    program: Program,
    stage: str,
    tokens: list[int],
    capacity: int,
    random: np.random.Generator,
) -> None:
    """Fill each slot of ``stage`` with random rows: of ``tokens``, or of ``capacity`` where no window forgets any."""
    for slot, held in enumerate(tokens):
        count = capacity if program.window is None else held
        made = [
            random.standard_normal((2, shape.kv_heads, count, shape.head_dim)).astype(np.float32)
            for shape in program.caches(stage)
        ]
        gone = count - cache.rows_in(count)
        cache.write_rows(stage, slot, 0, [(keys[:, gone:], values[:, gone:]) for keys, values in made])


def _filled(backend: Backend, tokens: int, random: np.random.Generator) -> F32:
    """Return K/V of every layer of the block, concatenated, after filling ``tokens`` tokens at every depth.

    Each lane has one less than the one before it.
    """
    program, cache = backend.program, backend.new_cache(1, tokens)
    depths = np.arange(program.depths)
    valid = np.maximum(tokens - depths, 1).astype(np.int32)
    positions = np.tile(np.arange(tokens), (program.depths, 1))
    state = random.standard_normal((program.depths, tokens, program.width)).astype(np.float32)
    backend.fill(state, Lanes(depths, np.zeros_like(valid), valid, positions), cache)
    rows = [
        array
        for slot, count in enumerate(valid.tolist())
        for pair in cache.read_rows("block", slot, 0, count)
        for array in pair
    ]
    return np.concatenate([array.ravel() for array in rows])


@dataclass(frozen=True)
class Expected:
    """The results that an engine must give, for single and for packed lanes, and the bounds of each."""

    trace: Trace
    packed: list[F32]
    bounds: list[float]

    @staticmethod
    def of(reference: ReferenceBackend, activations: Activations | None = None) -> Expected:
        """Return the results of ``reference`` with ``activations``, or with floats."""
        reference = reference.with_activations(activations)

        def run(model: ReferenceBackend) -> list[F32]:
            return [*trace(model).arrays, *trace_packed(model)]

        wanted, packed = trace(reference), trace_packed(reference)
        return Expected(wanted, packed, bounds(reference, activations, run, [*wanted.arrays, *packed]))

    @staticmethod
    def both(
        reference: ReferenceBackend, activations: Activations | None
    ) -> tuple[Expected, Expected | None]:
        """Return those with floats, and those with ``activations`` if there are any; ``reference`` forgets its
        matrices."""
        found = Expected.of(reference), Expected.of(reference, activations) if activations else None
        reference.forget()
        return found

    @property
    def logits(self) -> float:
        """The bound of the logits."""
        return self.bounds[len(self.trace.per_depth)]

    def check(
        self, engine: str, backend: Backend, packed: Backend | None = None, advice: str = REPORT
    ) -> tuple[tuple[float, ...], float]:
        """Return (difference after each depth, of the logits) of ``backend``, and of ``packed`` where that is
        another one.

        ParityError names the first thing beyond its bound. ``advice``: what the message suggests to do about it.
        """
        found = trace(backend)
        arrays = [*found.arrays, *trace_packed(packed or backend)]
        names = [*found.names, *["packed lanes"] * len(self.packed)]
        errors = list(map(difference, arrays, [*self.trace.arrays, *self.packed]))
        for what, error, most in zip(names, errors, self.bounds, strict=True):
            if not error <= most:
                raise ParityError(
                    f"{engine} disagrees with the reference engine in {what}: {error:.2g} relative, at most {most:.0e} "
                    f"wanted; the bundle was not written, {advice}"
                )
        depths = len(found.per_depth)
        return tuple(errors[:depths]), errors[depths]
