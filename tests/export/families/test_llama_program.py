"""Which programs are models of Llama's layers, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from msgspec import structs
from programs import PROGRAMS

from edgeloop.export.families.llama_program import program_of, spec_of
from edgeloop.export.families.llama_spec import Segment, Spec
from edgeloop.runtime.errors import ExportError
from edgeloop.runtime.model.blocks import Attention, Layer, Mlp, NormKind, llama, parallel
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.decoder import Block, Stages, decoder, stages_of
from edgeloop.runtime.model.facts import LayerRun, runs
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.rotation import Interpolated, Rotation

SPEC = Spec(
    family="test", segments=(Segment(1), Segment(2, 3), Segment(1)), vocab_size=50, hidden_size=16,
    intermediate_size=24, heads=2, kv_heads=1, head_dim=8, norm_eps=1e-6, rope_theta=1e4, context_length=32,
    tied_embedding=False,
)  # fmt: skip
SPECS = [
    {},
    {"tied_embedding": True, "sliding_window": 4, "bos_token_id": 3, "eos_token_ids": (1, 2)},
    {"sandwich_norms": True, "loop_norm": True, "exit_gate": True, "segments": (Segment(2, 3),)},
    {"kv": "shared"},
    {"rope_scaling": Interpolated(2.0)},
    {"segments": (Segment(1, 2), Segment(1, 2))},
    {"segments": (Segment(1, 3, per_repeat_norms=True, lora={"q_proj": 2, "down_proj": 4}),)},
    {"segments": (Segment(1), Segment(1, 2, per_repeat_attention=True))},
]


@pytest.mark.parametrize("changes", SPECS)
def test_a_spec_comes_back_from_its_program(changes: dict[str, Any]) -> None:
    spec = structs.replace(SPEC, **changes)
    assert spec_of(program_of(spec)) == spec


def other(
    block: Block = llama,
    mlp: Mlp = Mlp(24),  # noqa: B008 - frozen
    norm: NormKind = NormKind(1e-6),  # noqa: B008
    **attention: Any,
) -> Program:
    """The program of ``SPEC``, but for some of its parts."""
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": 8, "rotation": Rotation(8, 1e4)}
    layer = Layer(16, Attention(**{**sizes, **attention}), mlp, norm)
    segments = [(layer,), (replace(layer, depths=3),) * 2, (layer,)]
    return decoder(
        "test", block, segments, norm, width=16, vocab_size=50, context_length=32, tied_embedding=False
    )


OTHERS: list[tuple[Callable[[], Program], str]] = [
    (partial(other, norm=NormKind(1e-6, "layer")), "norm of kind layer (0.h in prologue)"),
    (partial(other, parallel), "norm where Llama has add (0.g in prologue)"),
    (partial(other, mlp=Mlp(24, "gelu_tanh")), "act of function gelu_tanh (0.act in prologue)"),
    (
        partial(other, rotation=Rotation(4, 1e4)),
        "rotate of by Rotation(dims=4, theta=10000.0, scaling=None) (0.q_turned",
    ),
    (partial(other, scale=0.5), "attend of scale 0.5 (0.mixed in prologue)"),
    (partial(other, bias=True), "a weight segments.0.layers.0.qkv_proj of another kind (as with a bias)"),
    (PROGRAMS["hierarchical"], "no attention with one kind of rotation over one state"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "what"), OTHERS)
def test_another_model_is_refused_by_its_first_op(make: Callable[[], Program], what: str) -> None:
    with pytest.raises(ExportError) as caught:
        spec_of(make(), "target t")
    assert str(caught.value).startswith(f"target t takes Llama's layers only, and the model has {what}")


def test_any_block_makes_a_sound_program() -> None:
    norm = NormKind(1e-5, "layer", bias=True)
    program = other(parallel, Mlp(24, "gelu", gated=False, bias=True), norm, bias=True, out_bias=True)
    assert next(problems(program), None) is None
    assert runs(program) == [LayerRun(1, 1), LayerRun(2, 3), LayerRun(1, 1)]
    assert {"norm", "norm_bias", "head", "segments.1.layers.1.up_proj"} < program.weights.keys()


@pytest.mark.parametrize(
    ("repeats", "wanted"),
    [
        ([1, 3, 1], Stages((0,), (1,), (2,), 3)),
        ([2], Stages((), (0,), (), 2)),
        ([2, 2], Stages((), (0, 1), (), 1)),
        ([1, 1], Stages((), (0, 1), (), 1)),
        ([1, 2, 1, 2], Stages((), (0, 1, 2, 3), (), 1)),
    ],
)
def test_one_segment_that_repeats_is_the_loop(repeats: list[int], wanted: Stages) -> None:
    assert stages_of(repeats) == wanted
