"""The parity step of encoders: an engine that gets anything of a whole text wrong is refused, and told where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from model_run import random_tensors
from programs import PROGRAMS

from edgeloop.export.parity import Expected
from edgeloop.export.whole_texts import LENGTHS
from edgeloop.runtime.engines.backend import F32, I64, Lanes
from edgeloop.runtime.engines.kv import KVCache
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ParityError
from edgeloop.runtime.model.program import Program

FIRST, LAST, LOGITS = "the state after depth 0", "the state after depth 2", "the logits"


def engine() -> ReferenceBackend:
    program = PROGRAMS["encoder"]()
    return ReferenceBackend(program, random_tensors(program.weights), 0)


def padding_seen(lanes: Lanes) -> Lanes:
    return replace(lanes, tokens=np.full_like(lanes.tokens, lanes.positions.shape[1]))


def no_types(lanes: Lanes) -> Lanes:
    return replace(lanes, types=None)


def one_block(lanes: Lanes) -> Lanes:
    """The last depth is another block's."""
    return replace(lanes, depth=np.zeros_like(lanes.depth))


def cut_short(lanes: Lanes) -> Lanes:
    return replace(lanes, tokens=np.minimum(lanes.tokens, LENGTHS[0] - 1))


class Faulty(ReferenceBackend):
    """The reference engine with one thing wrong."""

    def __init__(self, wrong: Callable[[Lanes], Lanes], stage: str) -> None:
        program = PROGRAMS["encoder"]()
        super().__init__(program, random_tensors(program.weights), 0)
        self.wrong, self.stage = wrong, stage

    def prologue(self, ids: I64, lanes: Lanes, cache: KVCache) -> F32:
        return super().prologue(ids, self.wrong(lanes) if self.stage == "prologue" else lanes, cache)

    def block(self, state: F32, lanes: Lanes, cache: KVCache) -> F32:
        return super().block(state, self.wrong(lanes) if self.stage == "block" else lanes, cache)

    def epilogue(self, state: F32, rows: I64, lanes: Lanes, cache: KVCache) -> F32:
        found = super().epilogue(state, rows, lanes, cache)
        return found[::-1] if self.stage == "epilogue" else found


@pytest.mark.parametrize(
    ("wrong", "stage", "where"),
    [
        (padding_seen, "block", FIRST),
        (no_types, "prologue", FIRST),
        (one_block, "block", LAST),
        (cut_short, "block", FIRST),
        (no_types, "epilogue", LOGITS),
    ],
)
def test_what_is_wrong_is_refused(wrong: Callable[[Lanes], Lanes], stage: str, where: str) -> None:
    wanted = Expected.of(engine())
    with pytest.raises(ParityError, match=f"an engine disagrees with the reference engine in {where}: "):
        wanted.check("an engine", Faulty(wrong, stage))


def test_what_is_right_is_not() -> None:
    wanted = Expected.of(engine())
    per_depth, logits = wanted.check("an engine", engine())
    assert (per_depth, logits) == ((0.0, 0.0, 0.0), 0.0)
    program: Program = engine().program
    assert [len(state) for state in wanted.trace.per_depth] == [sum(LENGTHS)] * program.depths
    assert wanted.trace.logits.shape == (sum(LENGTHS), program.vocab_size)
