"""The program of a shape, without weights, is that of the checkpoint which ``synth`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import read_checkpoint
from edgeloop.export.synth import synthesize_shape
from edgeloop.export.synth_program import program_of_shape
from edgeloop.export.synth_shapes import SHAPES, Shape

SMALL = {
    "mor": Shape("mor", tiny.VOCAB, 64, 96, 4, 2, layers=8, repeats=3),
    "mobilellm": Shape("mobilellm", tiny.VOCAB, 64, 96, 4, 2, layers=4, repeats=2),
    "ouro": Shape("ouro", tiny.VOCAB, 64, 96, 4, 4, layers=2, repeats=3, tied=False),
    "nanbeige": Shape("nanbeige", tiny.VOCAB, 64, 96, 4, 2, layers=2, repeats=2, tied=False),
    "huginn": Shape("huginn", tiny.VOCAB, 64, 96, 4, 4, layers=2, repeats=4, edges=1),
    "retrofit": Shape("retrofit", tiny.VOCAB, 64, 96, 4, 2, layers=2, repeats=4, edges=1, tied=False),
    "llama": Shape("llama", tiny.VOCAB, 64, 96, 4, 2, layers=6, repeats=3, tied=False, sharing="cycle"),
    "gemma": Shape("gemma", tiny.VOCAB, 64, 96, 4, 1, layers=4, repeats=2, sharing="cycle", head_size=32),
    "gpt_neox": Shape("gpt_neox", tiny.VOCAB, 64, 96, 4, 4, layers=4, repeats=2, tied=False, sharing="cycle"),
}
"""A shape of each family that has them."""


@pytest.mark.parametrize("family", SMALL)
def test_the_program_of_a_shape_is_that_of_its_checkpoint(family: str, tmp_path: Path) -> None:
    synthesize_shape(SMALL[family], tmp_path / "made")
    written = read_checkpoint(Checkpoint.open(tmp_path / "made")).program
    assert program_of_shape(SMALL[family]) == written
    assert {shape.family for shape in SHAPES.values()} == set(SMALL)


def test_a_lora_is_part_of_it(tmp_path: Path) -> None:
    synthesize_shape(SMALL["mor"], tmp_path / "made", lora_rank=4)
    assert program_of_shape(SMALL["mor"], 4) == read_checkpoint(Checkpoint.open(tmp_path / "made")).program
