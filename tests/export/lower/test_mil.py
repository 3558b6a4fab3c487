"""Whole programs of many kinds of models as Core ML packages: what was saved computes what the reference does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from lowered import random_weights, write
from msgspec import structs
from programs import HEADS, PLAIN, PROGRAMS, RMS, WIDTH, program
from random_programs import random_program

pytest.importorskip("coremltools")

from edgeloop.export.lower.mil import LOWERINGS, REFUSED, check, halved
from edgeloop.export.targets.coreml.constants import Store
from edgeloop.export.targets.coreml.errors import EXACT
from edgeloop.export.targets.coreml.package import write_package
from edgeloop.export.targets.coreml.parity import check_parity
from edgeloop.export.targets.coreml.plan import PackagePlan
from edgeloop.export.targets.coreml.target import CoremlTarget, describe
from edgeloop.export.targets.coreml.target import halved as halved_weights
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.bundle import manifest
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.coreml.engine import CoremlBackend
from edgeloop.runtime.engines.coreml.interpreter import Interpreter, read_model
from edgeloop.runtime.engines.coreml.signature import check_described, check_functions
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ExportError, UsageError
from edgeloop.runtime.model import ops
from edgeloop.runtime.model.blocks import Attention, Writer, llama
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.ops import Act, Add, Scale
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.rotation import Rotation
from edgeloop.runtime.model.transform import windowed
from edgeloop.runtime.model.weights import tensors

REFUSALS = {
    "experts": "does not take experts: which of them",
    "parallel_loop": "does not take shift: it keeps a row",
}
PACKAGE = "model.mlpackage"
FLOAT = Recipe.named("none", 32)
TAKEN = [name for name in PROGRAMS if name not in REFUSALS]


def packaged(model: Program, folder: Path, recipe: Recipe = FLOAT) -> manifest.Parity:
    """Write the package of ``model`` with random weights, and run all of it beside the reference engine."""
    check(model)
    stored = write(_tame(model, random_weights(model.weights, recipe.bits, recipe.group_size)), folder)
    plan, package = PackagePlan(model), folder / PACKAGE
    write_package(plan, Store(stored, recipe, plan.program), package, {}, lambda name, part: None)
    engine, endless = (
        ReferenceBackend(p, halved_weights(stored), recipe.group_size, tables_as=np.float16)
        for p in (halved(model), halved(windowed(model, None)))
    )
    return check_parity(engine, plan, package, filler=endless if plan.fills else None)


def _tame(model: Program, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Random weights of the size of a model's: norms near 1, matrices that keep the size of what they multiply."""
    factor = {"matrix": 0.35, "vector": 0.1, "delta": 0.35}
    for name, tensor in tensors(model.weights):
        if name not in found:
            name = name.replace(".weight", ".scales")
            found[name] = found[name] * np.float16(factor["matrix"])
        else:
            middle = 1 if tensor.kind == "vector" else 0
            found[name] = (middle + factor[tensor.kind] * found[name]).astype(found[name].dtype)
    return found


@pytest.mark.parametrize("name", TAKEN)
def test_every_function_computes_what_the_reference_does(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "gemma":  # norms of vectors of 4 numbers, which may be small, magnify what rounding leaves
        monkeypatch.setattr("edgeloop.export.targets.coreml.errors.SHIPPED", 3e-2)
    parity = packaged(structs.replace(PROGRAMS[name](), routing=None), tmp_path)
    assert 0 < max(*parity.per_depth, parity.logits) <= EXACT
    assert parity.shipped > EXACT


@pytest.mark.parametrize("name", ["relaxed", "gpt", "shared"])
@pytest.mark.parametrize("quant", ["int4", "int8-channel"])
def test_matrices_of_codes(tmp_path: Path, name: str, quant: str) -> None:
    packaged(PROGRAMS[name](), tmp_path, Recipe.named(quant, 32))


def test_every_activation_and_attentions_of_other_heads(tmp_path: Path) -> None:
    def block(w: Writer) -> tuple[str, ...]:
        x = llama(w, "state", "b.0", PLAIN)
        wide = Attention(
            heads=4, kv_heads=2, head_dim=6, rotation=Rotation(4, 100.0), pairs=True, mask="causal"
        )
        x = llama(w, x, "b.1", replace(PLAIN, attention=wide))
        x = llama(w, x, "b.2", PLAIN)
        normed = w.norm(x, "normed", "b.norm", WIDTH, RMS)
        for function in get_args(ops.Function):
            w.add(Act(normed, f"of {function}", function))
            w.add(Scale(f"of {function}", f"less of {function}", 0.1))
            w.add(Add(x, f"less of {function}", f"with {function}"))
            x = f"with {function}"
        return (x,)

    made = program({}, lambda w: "embedded", [block], schedule=(0, 0))
    shapes = {name: shape[:2] + shape[3:] for name, shape in PackagePlan(made).states.items()}
    assert shapes == {
        **dict.fromkeys(("block_keys", "block_values"), (4, 1, 4)),
        **dict.fromkeys(("block_keys_1", "block_values_1"), (2, 2, 6)),
    }
    packaged(made, tmp_path)
    described = {
        s.name: s.shortDescription for s in read_model(tmp_path / PACKAGE).description.functions[0].state
    }
    assert len(set(described.values())) == 4


def test_numbers_that_float16_rounds_are_the_references_too() -> None:
    found = halved(PROGRAMS["gemma"]())
    attends = [op for op in found.loop.blocks[0].ops if isinstance(op, ops.Attend)]
    assert attends[0].scale == float(np.float16(0.3))
    assert attends[2].scale == 0.5
    assert found.prologue.ops[0].scale == 2.5
    assert halved(found) == found


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=f"target coreml {REFUSALS[name]}.*; export to another target"):
        CoremlTarget().check(PROGRAMS[name](), FLOAT)


def test_every_op_is_taken_or_refused() -> None:
    assert LOWERINGS.keys() | REFUSED.keys() == set(get_args(ops.Op))
    assert not LOWERINGS.keys() & REFUSED.keys()


def test_a_text_that_is_read_at_once(tmp_path: Path) -> None:
    """Both ways, with padding; through the engine too, which takes lanes of several lengths."""
    model = PROGRAMS["encoder"]()
    plan = PackagePlan(model)
    assert plan.functions == ("decode_all", "embed", "decode_d0", "decode_d1", "decode_d2", "head")
    packaged(model, tmp_path)
    described = describe(plan, FLOAT)
    check_described(described, model)
    runner = Interpreter(tmp_path / PACKAGE, rounding=False)
    check_functions(runner.functions, described, model)
    assert [s.name for s in read_model(tmp_path / PACKAGE).description.functions[0].input] == [
        "ids",
        "types",
        "tokens",
    ]
    reference = ReferenceBackend(halved(model), halved_weights(tmp_path / "w.safetensors"), 0)
    engines = [CoremlBackend(model, described, runner), reference]
    types = np.array([[0] * 5, [0, 1, 1, 0, 0]])  # a loop gives none
    lanes = Lanes(np.zeros(2), np.zeros(2), np.array([5, 3]), np.tile(np.arange(5), (2, 1)), types=types)
    ids, found = np.random.default_rng(0).integers(0, 20, (2, 5)), []
    for engine in engines:
        cache = engine.new_cache(2, 5)
        state = engine.prologue(ids, lanes, cache)
        for depth in range(3):
            state = engine.block(state, lanes.at(depth, 0), cache)
        found.append(engine.epilogue(state, np.array([0, 4, 5, 7]), lanes, cache))
        loop = SequentialDecoder(engine, engine.new_cache(1, 8))
        np.testing.assert_allclose(loop.prompt(ids[0]), found[-1][1:2], atol=1e-5)
    np.testing.assert_allclose(*found, atol=1e-5)
    behind = Lanes(np.zeros(1), np.ones(1), np.ones(1), np.ones((1, 1)))
    with pytest.raises(
        UsageError, match="1 tokens behind 1, but this model reads a text at once, of 32 tokens"
    ):
        engines[0].prologue(ids[:1, :1], behind, cache)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"cached": False, "mask": "both"}, {}, "attend without a cache beside one with it"),
        ({"mask": "prefix"}, {}, "attend with mask prefix: a prompt goes in by chunks"),
    ],
)
def test_what_some_attentions_cannot(first: dict[str, Any], second: dict[str, Any], told: str) -> None:
    def block(w: Writer) -> tuple[str, ...]:
        x = llama(w, "state", "b.0", replace(PLAIN, attention=replace(HEADS, **first)))
        return (llama(w, x, "b.1", replace(PLAIN, attention=replace(HEADS, **second))),)

    with pytest.raises(ExportError, match=f"target coreml does not take {told}"):
        check(program({}, lambda w: "embedded", [block]))


@pytest.mark.parametrize("seed", range(12))
def test_programs_by_lot(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, with room for norms of small vectors: what float16 makes of those is anything."""
    monkeypatch.setattr("edgeloop.export.targets.coreml.parity.EXACT", 1e-4)
    monkeypatch.setattr("edgeloop.export.targets.coreml.errors.SHIPPED", np.inf)
    model = random_program(seed)
    assert not list(problems(model))
    recipe = Recipe.named(("none", "int4", "int8", "int8-channel")[seed % 4], 32)
    assert packaged(model, tmp_path, recipe).logits <= 1e-4
