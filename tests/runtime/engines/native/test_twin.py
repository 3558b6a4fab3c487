"""Whole models bit by bit: the lane engine beside a twin in numpy of the arithmetic that docs/native.md defines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import native_twin
import numpy as np
import numpy.typing as npt
import pytest
from lanes_files import QUANTS, stored
from programs import PROGRAMS
from random_programs import random_program

from edgeloop.export.parity import trace, trace_packed
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.native.file import NAME, write_lanes
from edgeloop.runtime.engines.native.library import Activations
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.model.activations import ACTIVATIONS
from edgeloop.runtime.model.blocks import Attention, Layer, Mlp, NormKind, llama
from edgeloop.runtime.model.decoder import decoder
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.rotation import Rotation
from edgeloop.runtime.model.weights import Delta

F32 = npt.NDArray[np.float32]

CASES: dict[str, Callable[[], Program]] = {
    **PROGRAMS,
    **{f"random-{seed}": lambda seed=seed: random_program(seed) for seed in range(12)},
}
INT8 = ACTIVATIONS["lanes"]


def wide() -> Program:
    """Llama in sizes that are no multiples of 16 or of a group, with deltas and norms of each depth."""
    attention = Attention(4, 2, 20, Rotation(20, 500.0), qk_norm="heads", window=30)
    deltas = {"k_proj": Delta(18), "up_proj": Delta(3, rescaled=True), "down_proj": Delta(5)}
    layer = Layer(72, attention, Mlp(100), NormKind(1e-5), 2, norm_rows=True, deltas=deltas)
    once = replace(layer, depths=1, norm_rows=False, deltas={}, mlp=Mlp(90, "gelu", gated=False, bias=True))
    return decoder(
        "test", llama, [(once,), (layer, layer)], layer.norm,
        width=72, vocab_size=50, context_length=64, tied_embedding=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_whole_model_has_the_bits_of_numpy(
    lane_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """After every depth: a prompt in pieces, a token, lanes of mixed depths, packed ones, filled-in K and V."""
    program, number = CASES[name](), list(CASES).index(name)
    native_twin.replace_ops(monkeypatch)
    for quant, activations in (
        (("int4", QUANTS[-1])[number % 2], Activations.INT8),
        (QUANTS[number % 3], Activations(number // 3 % 2)),
    ):
        twin, engine = both(tmp_path, program, quant, activations)
        names = [*trace(twin).names, "packed lanes"]
        with closing(engine):
            wanted, found = ([*trace(each).arrays, *trace_packed(each)] for each in (twin, engine))
        for i, (ours, numpys) in enumerate(zip(found, wanted, strict=True)):
            equal(ours, numpys, f"{quant}, {activations.name}: {names[min(i, len(names) - 1)]}")


@pytest.mark.parametrize("quant", QUANTS)
def test_a_longer_text_has_the_bits_of_numpy(
    lane_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    """Several blocks of K and V, groups of which the last one is not full, and a window that moves on."""
    program = wide()
    native_twin.replace_ops(monkeypatch)
    ids = np.random.default_rng(1).integers(0, program.vocab_size, 45)
    twin, engine = both(tmp_path, program, quant, Activations.INT8)
    with closing(engine):
        logits = []
        for each in (twin, engine):
            loop = SequentialDecoder(each, each.new_cache(1, len(ids)))
            pieces = [loop.prompt(part, rows="all") for part in (ids[:19], ids[19:44], ids[44:])]
            logits.append(np.concatenate([piece.copy() for piece in pieces if piece is not None]))
    equal(logits[1], logits[0], quant)


def both(
    folder: Path, program: Program, quant: str, activations: Activations
) -> tuple[ReferenceBackend, NativeBackend]:
    """The twin, once ops are replaced, and the engine."""
    tensors, group = stored(program, quant)
    path = folder / f"{quant}-{NAME}"
    write_lanes(path, program, tensors, group)
    rounding = INT8 if activations == Activations.INT8 else None
    twin = ReferenceBackend(program, tensors, group, activations=rounding)
    return twin, NativeBackend(program, path, activations=activations)


def equal(found: F32, wanted: F32, what: str) -> None:
    __tracebackhide__ = True
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32), what)
