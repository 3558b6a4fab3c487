"""The table of modes on the engines that bundles are for: each gives the texts of plain decoding, or refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from mode_cells import Walker
from mode_models import MODELS

from edgeloop.runtime.decode.modes import MANY, PIPELINED, SEQUENTIAL

NOT_EXPORTED = {"onnx": ("the row before",)}
"""What docs/ops.md says of the ops of these models."""
ROUNDING = 0.1
"""What logits are off by at most where every result is a float16: a little more than was measured."""


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_EXPORTED["onnx"]])
def test_onnx(tmp_path: Path, name: str) -> None:
    walker = Walker(name, tmp_path)
    found = walker.sample("onnx", "onnx", first=list(MODELS).index(name), every=4)
    assert found


@pytest.mark.parametrize("name", MODELS)
def test_native(lane_engine: Path, tmp_path: Path, name: str) -> None:
    """Every model and every driver: the engine refuses nothing that the table has."""
    found = Walker(name, tmp_path).sample("native", "native", first=list(MODELS).index(name), every=4)
    assert not [each for each in found if each.refused]


@pytest.mark.parametrize("name", ["shared K/V, a window"])
def test_executorch(tmp_path: Path, name: str) -> None:
    """One of them: lowering it takes as long as all that is run here."""
    pytest.importorskip("executorch")
    found = Walker(name, tmp_path).sample("executorch", "executorch")
    assert {each.cell.driver for each in found if not each.refused} == {SEQUENTIAL, PIPELINED, MANY}


@pytest.mark.parametrize("name", ["nothing around the loop", "shared K/V, a window"])
def test_core_ml(tmp_path: Path, name: str) -> None:
    pytest.importorskip("coremltools")
    found = Walker(name, tmp_path, ROUNDING).sample("coreml-reference", "coreml")
    assert {each.cell.driver for each in found if not each.refused} == {SEQUENTIAL, PIPELINED}
    refused = [each for each in found if each.refused]
    assert {each.cell.driver for each in refused} >= {MANY}
