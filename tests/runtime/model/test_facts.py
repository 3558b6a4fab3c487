"""What a program amounts to."""

from __future__ import annotations

import pytest
from programs import DEPTHS, PROGRAMS

from edgeloop.runtime.model.facts import count_parameters, op_kinds
from edgeloop.runtime.model.transform import unrolled
from edgeloop.runtime.model.weights import tensors

TWINS = sorted(PROGRAMS.keys() - {"parallel_loop", "hierarchical"})
"""One has no twin, the other rows of vectors for depths that run another block."""


@pytest.mark.parametrize("name", TWINS)
def test_as_many_parameters_as_an_unrolled_twin(name: str) -> None:
    """And those of the deltas, which a twin has in its matrices."""
    program = PROGRAMS[name]()
    found = count_parameters(program, heads=7)
    stored, deltas = (
        sum(t.numbers for _, t in tensors(program.weights) if kinds is None or t.kind in kinds)
        for kinds in (None, ("delta",))
    )
    twin, _ = unrolled(program)
    assert found == (stored + 7, sum(t.numbers for _, t in tensors(twin.weights)) + deltas + 7)


def test_experts_are_stored_once_for_each_depth() -> None:
    stored, unrolled = count_parameters(PROGRAMS["experts"]())
    outside = 20 * 8 + 8  # the embedding, which is the head too, and the last norm
    assert unrolled - outside == DEPTHS * (stored - outside)


def test_ops_are_named_with_what_tells_them_apart() -> None:
    found = op_kinds(PROGRAMS["gemma"]())
    assert {"act (gelu_tanh)", "attend (causal)", "attend (causal, window)", "norm (rms)", "softcap"} <= {
        *found
    }
    assert len(set(found)) == len(found)
