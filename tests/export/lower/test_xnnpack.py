"""Programs of many kinds as methods for XNNPACK: the modules behind the engine, against the reference engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lowered import random_weights
from mode_models import prompts_that_see_themselves
from model_run import random_tensors
from msgspec import structs
from programs import HEADS, PLAIN, PROGRAMS, WIDTH, program, stack

from edgeloop.export.parity import Expected
from edgeloop.export.target import Job
from edgeloop.export.weights import WeightsWriter
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.bundle import manifest
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Lanes, can_fill
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ExportError, UsageError
from edgeloop.runtime.model import ops
from edgeloop.runtime.model.blocks import Attention, Writer
from edgeloop.runtime.model.ops import Act, Attend, AttendLearned, Mul, Norm, Scale, Slice, Softcap
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.rotation import Rotation
from edgeloop.runtime.model.weights import Matrix, Vector, Weight

pytest.importorskip("executorch")
from mutant_runs import close, filled, logits, small, sound
from xnnpack_modules import opened

from edgeloop.export.lower.xnnpack import LOWERINGS, REFUSED, check
from edgeloop.export.lower.xnnpack_attend import JointRotate
from edgeloop.export.targets.executorch.flat import check_flat
from edgeloop.export.targets.executorch.target import ExecutorchTarget
from edgeloop.runtime.engines.executorch.kinds import kinds
from edgeloop.runtime.engines.executorch.layout import Shapes

IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])


def every() -> Program:
    """All that is done to single values, some of it where nothing else would notice that an engine does it wrongly."""

    def block(w: Writer) -> tuple[str, ...]:
        x = stack(
            w,
            "state",
            "b",
            [replace(PLAIN, attention=replace(HEADS, rotation=Rotation(2, 50.0), pairs=True))],
        )
        for function in ("gelu", "gelu_tanh", "relu2", "sigmoid", "tanh", "softplus", "exp", "relu", "silu"):
            w.add(Act(x, function, function))
            w.add(Norm(function, f"{function}_normed", "layer", 1e-5))
            w.weight(function, Matrix({function: WIDTH}, WIDTH, bias=True))
            w.linear(
                f"{function}_normed",
                (f"{function}_out",),
                function,
                Matrix({function: WIDTH}, WIDTH, bias=True),
            )
            x = f"{function}_out"
        w.add(Norm(x, "parts", "layer", 1e-5, groups=2))
        w.add(Slice("parts", "half", 2, 4))
        w.add(Mul(x, "half", "gated"))
        w.weight("injection", Vector(WIDTH, 3))
        w.add(Scale("gated", "scaled", 0.5, 0.1, "injection"))
        w.add(Softcap("scaled", "capped", 2.0))
        for name in ("keys", "values"):
            w.weight(name, Vector(8, 3))
        w.add(AttendLearned("capped", "learned", "keys", "values", 4, 4, 2, 0.5))
        return ("learned",)

    return program({}, lambda w: "embedded", [block], cap=3.0)


MADE: dict[str, Callable[[], Program]] = {**PROGRAMS, "every": every}
NOT_TAKEN = {
    "routed": "attention has matrices of its own for each depth, which target executorch does not take",
    "experts": "target executorch does not take experts: it chooses matrices by the token",
    "parallel_loop": "target executorch does not take shift: it keeps a row of each lane from call to call",
}
EACH = pytest.mark.parametrize("name", [name for name in MADE if name not in NOT_TAKEN])


def changed_kv(made: Program, **fields: Any) -> Program:
    """``made`` with other attention in its blocks."""
    blocks = tuple(
        structs.replace(
            block,
            ops=tuple(structs.replace(op, **fields) if isinstance(op, Attend) else op for op in block.ops),
        )
        for block in made.loop.blocks
    )
    return structs.replace(made, loop=structs.replace(made.loop, blocks=blocks))


@EACH
def test_it_is_the_reference_engine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an export compares: each depth, lanes of mixed depths, packed lanes, filled-in K and V."""
    made = MADE[name]()
    stored = random_tensors(made.weights)
    wanted = Expected.of(ReferenceBackend(made, stored, 0))
    backend = opened(made, stored, tmp_path, monkeypatch)
    per_depth, logits = wanted.check("the modules", backend)
    assert max(*per_depth, logits) < 1e-5


@EACH
def test_pieces_are_the_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached decode, in chunks and token by token, is the forward of everything at once."""
    if name == "encoder":
        pytest.skip("nothing is cached")
    made = MADE[name]()
    stored = random_tensors(made.weights)
    whole = SequentialDecoder(
        ReferenceBackend(made, stored, 0), ReferenceBackend(made, stored, 0).new_cache(1, 16)
    )
    wanted = whole.prompt(IDS, rows="all")
    backend = opened(made, stored, tmp_path, monkeypatch)
    loop = SequentialDecoder(backend, backend.new_cache(1, 16))
    found = [
        loop.prompt(part, rows="all").copy() for part in (IDS[:5], IDS[5:6], IDS[6:8], IDS[8:9], IDS[9:])
    ]
    np.testing.assert_allclose(np.concatenate(found), wanted, atol=1e-4)


def test_depths_that_share_keys_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths after the first have methods that make none, and queries are a matrix by themselves."""
    made = changed_kv(PROGRAMS["shared"](), window=None)
    stored = random_tensors(made.weights)
    assert kinds(made) == ["block", "read", "head"]
    backend = opened(made, stored, tmp_path, monkeypatch)
    Expected.of(ReferenceBackend(made, stored, 0)).check("the modules", backend)


def test_prompts_that_see_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is one call of each stage, however short; one that is longer than a call is refused, not cut."""
    made = prompts_that_see_themselves()
    assert Shapes.of(structs.replace(made, context_length=4000)) == Shapes(3, 512)
    stored = random_tensors(made.weights)
    backend, reference = opened(made, stored, tmp_path, monkeypatch), ReferenceBackend(made, stored, 0)
    per_depth, logits = Expected.of(reference).check("the modules", backend)
    assert max(*per_depth, logits) < 1e-5
    for pieces in ((2, 1, 1), (3, 2), (9, 1, 4), (16, 1)):
        loops = [SequentialDecoder(engine, engine.new_cache(1, 20)) for engine in (backend, reference)]
        ids = np.resize(IDS, 20)
        for start, count in zip(np.cumsum((0, *pieces)).tolist(), pieces, strict=False):
            found, wanted = (loop.prompt(ids[start : start + count], rows="all").copy() for loop in loops)
            np.testing.assert_allclose(found, wanted, atol=1e-4)
    causal = SequentialDecoder(reference, reference.new_cache(1, 20)).prompt(ids[:9], "all", prefix=1).copy()
    block = SequentialDecoder(backend, backend.new_cache(1, 20)).prompt(ids[:9], "all")
    assert np.abs(causal - block).max() > 0.01
    with pytest.raises(
        UsageError, match="17 tokens at once, and the model was exported for 16 at most; shorten"
    ):
        SequentialDecoder(backend, backend.new_cache(1, 20)).prompt(ids[:17])


def test_an_encoder_sees_a_text_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MADE["encoder"]()
    stored = random_tensors(made.weights)
    assert kinds(made) == ["prologue", "block", "block1", "head"]
    backend = opened(made, stored, tmp_path, monkeypatch)
    tokens = np.array([3, 8], np.int32)
    lanes = Lanes(np.zeros(2), np.zeros(2), tokens, np.tile(np.arange(8), (2, 1)))
    state = np.random.default_rng(0).standard_normal((2, 8, WIDTH)).astype(np.float32)
    found = backend.block(state, lanes, backend.new_cache(2, 8))
    wanted = ReferenceBackend(made, stored, 0).block(state, lanes, backend.new_cache(2, 8))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    long = Lanes.single(0, 0, 17, 0)
    with pytest.raises(UsageError, match="17 tokens at once, and the model was exported for 16 at most"):
        backend.block(np.zeros((1, 17, WIDTH), np.float32), long, backend.new_cache(1, 17))


EVERY_KIND = 3
"""Changed programs of each kind that are run."""


def taken(made: Program) -> bool:
    """Does the target take it?"""
    try:
        ExecutorchTarget().check(made, Recipe.named("none", 32))
    except ExportError:
        return False
    return True


@EACH
def test_programs_with_something_changed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for made in islice(sound(MADE[name](), taken), EVERY_KIND):
        stored = {key: small(key, value) for key, value in random_weights(made.weights).items()}
        engines = ReferenceBackend(made, stored, 0), opened(made, stored, tmp_path, monkeypatch)
        with np.errstate(all="ignore"):  # an exp of an exp may be larger than a float32
            assert close(*map(logits, engines)), made
            if can_fill(made):
                assert close(*map(filled, engines)), made


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=NOT_TAKEN[name]) as caught:
        ExecutorchTarget().check(MADE[name](), Recipe.named("none", 32))
    assert "\n" not in str(caught.value)


def test_what_else_is_refused() -> None:
    check(MADE["gpt"]())
    with pytest.raises(ExportError, match="the flat layout does not take attend with mask prefix"):
        check_flat(changed_kv(MADE["gpt"](), mask="prefix"))
    wide = replace(PLAIN, attention=Attention(2, 2, 4, None))
    weights: dict[str, Weight] = {}
    mixed = program(
        weights, lambda w: stack(w, "embedded", "a", [wide]), [lambda w: (stack(w, "state", "b", [PLAIN]),)]
    )
    with pytest.raises(ExportError, match=r"of one shape, and the model has 2 heads of 4 and 1 of 4"):
        check(mixed)


def test_every_op_is_known() -> None:
    """Lowered, looked up by the host, or refused."""
    lowered = (
        set(LOWERINGS) | set(REFUSED) | {ops.Embed, ops.Rotate}
    )  # rotations are lowered together, see JointRotate
    assert set(ops.Op.__args__) | {JointRotate} == lowered  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["gpt", "every"])
def test_xnnpack_computes_it(name: str, tmp_path: Path) -> None:
    """An export: each method in one delegate, compared by the target after every depth."""
    made, recipe = MADE[name](), Recipe.named("none", 32)
    stored = random_tensors(made.weights)
    with WeightsWriter(tmp_path / "w", len(stored) + 1) as writer:
        for key, tensor in stored.items():
            writer.add(key, tensor)
    target = ExecutorchTarget(Shapes(1, 4))
    target.check(made, recipe)
    found: manifest.Target = target.export(
        Job(made, recipe, tmp_path / "w", tmp_path, lambda step, part: None)
    )
    assert max(*found.parity.per_depth, found.parity.logits) < 1e-4
