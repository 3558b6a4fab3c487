"""The forward that is differentiated computes what the reference engine does, after every depth, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from editing import read
from tiny import KINDS

from edgeloop.export.refine.forward import Forward
from edgeloop.export.stored import write_weights
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.windows import DepthReader
from edgeloop.runtime.engines.backend import F32
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.model.stored import map_tensors

FIXTURES = Path(__file__).parents[2] / "fixtures" / "parity"
DECODERS = sorted(p.name for p in FIXTURES.iterdir() if p.is_dir() and not p.name.startswith("albert"))


def compare(folder: Path, tmp_path: Path) -> None:
    reading = read(folder)
    program = reading.program
    write_weights(reading, Recipe.named("none", 32), tmp_path / "w")
    stored = map_tensors(tmp_path / "w")
    window = min(20, program.context_length)
    ids = np.random.default_rng(0).integers(0, program.vocab_size, (2, window))
    forward = Forward(program)
    values = {name: torch.from_numpy(np.array(value)) for name, value in stored.items()}
    found = [logits.numpy() for logits in forward(values, torch.from_numpy(ids))]
    assert len(found) == program.depths
    backend = ReferenceBackend(program, stored, 0)
    for row in range(len(ids)):
        wanted = np.empty((program.depths, window, program.vocab_size), np.float32)

        def visit(depth: int, first: int, logits: F32, into: F32 = wanted) -> None:
            into[depth, first : first + len(logits)] = logits

        decoder = SequentialDecoder(backend, backend.new_cache(1, window))
        DepthReader(decoder).run(ids[row], visit)
        for depth, logits in enumerate(found):
            atol = 5e-5 * max(1.0, float(np.abs(wanted[depth]).max()))
            np.testing.assert_allclose(logits[row], wanted[depth], atol=atol, err_msg=f"depth {depth}")


@pytest.mark.parametrize("name", DECODERS)
def test_authors_models(name: str, tmp_path: Path) -> None:
    compare(FIXTURES / name, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tiny_model(kind: str, tiny_once: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_once(kind)
    if read(folder).program.encoder:
        pytest.skip("an encoder says nothing of a next token")
    compare(folder, tmp_path)
