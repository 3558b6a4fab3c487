"""What is counted of a program's work, against counts that are made in other ways."""

from __future__ import annotations

import pytest
from programs import PROGRAMS

from edgeloop.runtime.model.ops import Attend, Experts
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.transform import windowed
from edgeloop.runtime.model.work import stage_work

FLOATS = (32, 0)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_op_is_counted(name: str) -> None:
    """Every program has work in each stage; K/V that a token reads are those that one token keeps."""
    program: Program = PROGRAMS[name]()
    works = [stage_work(program, "block", lambda _: FLOATS, depth) for depth in range(program.depths)]
    assert all(work.row_products > 0 and work.numbers > 0 for work in works)
    attends = [op for op in program.stage("block").ops if isinstance(op, Attend) and op.cache is not None]
    if attends and len(program.loop.blocks) == 1 and all(op.slot == "own" for op in attends):
        numbers = sum(2 * op.kv_heads * op.head_dim for op in attends)
        assert works[0].kv_numbers(1) >= numbers
        assert numbers * 4 * program.depths <= program.kv_bytes_per_token


def test_experts_read_what_rows_choose() -> None:
    program = next(
        made
        for made in (PROGRAMS[name]() for name in PROGRAMS)
        if any(isinstance(op, Experts) for stage in made.stages for op in stage.ops)
    )
    one, many = (
        sum(
            stage_work(program, name, lambda _: FLOATS).weight_bytes(rows)
            for name in ("prologue", "block", "epilogue")
        )
        for rows in (1, 1000)
    )
    assert (
        one < many <= sum(4 * w.copies * w.rows * w.columns for w in map(program.matrix, _matrices(program)))
    )


def test_a_window_bounds_the_keys() -> None:
    whole = PROGRAMS["relaxed"]()
    narrow = windowed(whole, 5)
    here, there = (stage_work(made, "block", lambda _: FLOATS) for made in (whole, narrow))
    assert here.kv_numbers(100) == 100 * here.kv_numbers(1)
    assert there.kv_numbers(100) == there.kv_numbers(5) == 5 * here.kv_numbers(1)


def _matrices(program: Program) -> list[str]:
    return [name for name, weight in program.weights.items() if hasattr(weight, "parts")]
