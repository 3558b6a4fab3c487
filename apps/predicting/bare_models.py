"""Times matrices of the lane engine by themselves: models of nothing else, with random weights, written for it.

So nothing is compiled where it is measured, and the rates are those that the engine reaches there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...runtime.engines.backend import Lanes
from ...runtime.engines.native.engine import NativeBackend
from ...runtime.engines.native.file import write_lanes
from ...runtime.model.blocks import Writer
from ...runtime.model.codec import code_shape
from ...runtime.model.ops import Attend, Embed
from ...runtime.model.program import Carry, Loop, Program, Stage
from ...runtime.model.weights import Matrix, Weight
from ...runtime.timing import Stopwatch

WIDTH = 2048
HEADS, HEAD = 32, 64
"""Of the attention: K/V for every head, as wide as a state together."""
CONTEXT, CHUNK = 1024, 64
_VOCAB = 16
_LEARNING = 3
"""Calls that are not counted: they bring the file into memory, and the engine learns how many threads pay."""
_STEPS = {8: 1 / (73 * WIDTH**0.5), 4: 1 / (4.6 * WIDTH**0.5)}
"""By their bits, the scale of random codes whose products keep the size of a state: their standard deviation is 73, or
4.6."""


def numbers(layers: int, inner: int) -> int:
    """Of ``matrices``, which are bytes in 8 bits: a matrix there and one back in each layer."""
    return layers * 2 * WIDTH * inner


def matrices(layers: int, inner: int) -> Program:
    """A model whose block is ``layers`` layers of two matrices, [inner, WIDTH] and [WIDTH, inner]."""
    weights: dict[str, Weight] = {}
    w, x = Writer(weights, "state"), "state"
    for layer in range(layers):
        w.linear(x, (f"{layer}.inner",), f"{layer}.up", Matrix({"up": inner}, WIDTH))
        w.linear(f"{layer}.inner", (f"{layer}.out",), f"{layer}.down", Matrix({"down": WIDTH}, inner))
        x = f"{layer}.out"
    return _program(weights, w.stage(x))


def attention() -> Program:
    """A model whose block is an attention, and the matrix that it needs."""
    weights: dict[str, Weight] = {}
    w = Writer(weights, "state")
    w.enter_layer("state")
    w.linear("state", ("q", "k", "v"), "qkv", Matrix(dict.fromkeys(("q", "k", "v"), WIDTH), WIDTH))
    w.add(Attend("q", "k", "v", "mixed", HEADS, HEADS, HEAD, HEAD**-0.5, w.cache()))
    return _program(weights, w.stage("mixed"))


def _program(weights: dict[str, Weight], block: Stage) -> Program:
    w = Writer(weights, "ids")
    table = Matrix({"embed": _VOCAB}, WIDTH)
    w.add(Embed("ids", "embedded", w.weight("embed", table)))
    head = Writer(weights, "state")
    head.linear("state", ("logits",), "embed", table)
    return Program(
        family="bare",
        vocab_size=_VOCAB,
        context_length=CONTEXT + CHUNK,
        prologue=w.stage("embedded"),
        loop=Loop((Carry("state", WIDTH),), (block,), (0,)),
        epilogue=Writer(weights, "state").stage("state"),
        head=head.stage("logits"),
        weights=weights,
    )


def stored(made: Program, bits: int = 8) -> dict[str, np.ndarray]:
    """Random tensors of ``made``: matrices of 4 or 8 bits with a scale a row, or of floats of 16 or 32."""
    random, found = np.random.default_rng(0), dict[str, np.ndarray]()
    for name, weight in made.weights.items():
        assert isinstance(weight, Matrix)
        shape = (weight.rows, weight.columns)
        if bits not in _STEPS:
            floats = random.standard_normal(shape, np.float32) / np.float32(WIDTH**0.5)
            found[f"{name}.weight"] = floats.astype(np.float16 if bits == 16 else np.float32)
            continue
        codes = np.frombuffer(random.bytes(weight.rows * weight.columns * bits // 8), np.uint8)
        found[f"{name}.codes"] = codes.reshape(code_shape(*shape, 0, bits))
        found[f"{name}.scales"] = np.full((weight.rows, 1), _STEPS[bits], np.float16)
    return found


class BareModel:
    """A file of a model that is timed with any number of threads."""

    def __init__(self, made: Program, path: Path) -> None:
        self._program, self._path = made, path

    def seconds(
        self, threads: int, rows: int, turns: int, behind: int = 0, cpus: Sequence[int] = ()
    ) -> float:
        """The shortest of ``turns`` calls of the block with ``rows`` rows: what disturbs a call only adds to it.

        ``behind``: tokens whose K/V are there, a multiple of ``CHUNK``. ``cpus``: where the engine's threads run.
        """
        backend = NativeBackend(self._program, self._path, threads=threads, cpus=cpus)
        try:
            cache = backend.new_cache(1, CONTEXT + CHUNK)
            random, times = np.random.default_rng(0), list[float]()

            def call(rows: int, behind: int) -> None:
                one, here = np.ones(1, np.int32), np.arange(behind, behind + rows)[None]
                lanes = Lanes(np.zeros(1, np.int64), behind * one, rows * one, here)
                state = random.standard_normal((1, rows, WIDTH)).astype(np.float32)
                watch = Stopwatch()
                backend.block(state, lanes, cache)
                times.append(watch.ms / 1000)

            for start in range(0, behind, CHUNK):
                call(CHUNK, start)
            times.clear()
            for _ in range(turns + _LEARNING):
                call(rows, behind)
            return min(times[_LEARNING:])
        finally:
            backend.close()


@contextmanager
def bare_model(made: Program, bits: int = 8) -> Iterator[BareModel]:
    """A file of ``made`` with random weights of ``bits`` bits in a folder of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="edgeloop-") as folder:
        path = Path(folder) / "bare.lanes"
        write_lanes(path, made, stored(made, bits), 0)
        yield BareModel(made, path)
