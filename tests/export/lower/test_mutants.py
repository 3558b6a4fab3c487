"""Programs with something changed in them, whole: what is sound still computes the same on both engines."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from lowered import random_weights, write
from mutant_runs import close, filled, logits, small, sound
from programs import PROGRAMS

from edgeloop.export.lower.graph import Stored
from edgeloop.export.lower.onnx import check, write_graphs
from edgeloop.runtime.engines.backend import can_fill
from edgeloop.runtime.engines.onnx.engine import OnnxBackend
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ExportError
from edgeloop.runtime.model.program import Program

EACH = 6


def lowered(program: Program) -> bool:
    """Are there graphs of it?"""
    try:
        check(program)
    except ExportError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name, make in PROGRAMS.items() if lowered(make())])
def test_onnx_computes_what_the_reference_does(name: str, tmp_path: Path) -> None:
    make = PROGRAMS[name]
    for number, program in enumerate(islice(sound(make(), lowered), EACH)):
        folder = tmp_path / str(number)
        folder.mkdir()
        stored = {name: small(name, value) for name, value in random_weights(program.weights).items()}
        graphs = write_graphs(program, Stored.open(write(stored, folder), 0), can_fill(program))
        engines = ReferenceBackend(program, stored, 0), OnnxBackend(program, graphs)
        with np.errstate(all="ignore"):  # an exp of an exp may be larger than a float32
            assert close(*map(logits, engines))
            if can_fill(program):
                assert close(*map(filled, engines))
