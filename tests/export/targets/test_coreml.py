"""The Core ML target: what is in the saved package, and what it computes, run by edgeloop's own interpreter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from coreml_packages import KINDS, package_of

from edgeloop.export.family import Reading
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.targets.coreml.errors import EXACT, SHIPPED
from edgeloop.export.targets.coreml.parity import check_interface, check_parity
from edgeloop.export.targets.coreml.plan import PackagePlan
from edgeloop.export.targets.coreml.target import CoremlTarget
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.coreml.interpreter import MODEL, WEIGHTS, Interpreter, read_model
from edgeloop.runtime.engines.coreml.package import Package
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ExportError, ParityError
from edgeloop.runtime.version import VERSION


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_passes_parity(kind: str, packaged: Callable[..., Bundle]) -> None:
    target = packaged(kind).manifest.targets["coreml"]
    program = packaged(kind).program
    assert len(target.parity.per_depth) == program.depths
    # Nothing is bit for bit the reference's, so a zero would mean that nothing was compared.
    assert all(0 < error <= EXACT for error in (*target.parity.per_depth, target.parity.logits))
    assert EXACT < target.parity.shipped <= SHIPPED


def test_the_functions_of_a_looped_model(packaged: Callable[..., Bundle]) -> None:
    bundle = packaged("mor-middle-cycle")
    model = read_model(package_of(bundle))
    names = [f.name for f in model.description.functions]
    assert names == [
        "decode_all", "prefill", "embed", "decode_d0", "decode_d1", "decode_d2", "kvfill_d0", "kvfill_d1", "head",
    ]  # fmt: skip
    package = bundle.manifest.targets["coreml"].details_as(Package)
    assert list(package.functions) == names
    states = {
        "prologue_keys": (1, 2, 96, 16),
        "prologue_values": (1, 2, 96, 16),
        "block_keys": (6, 2, 96, 16),
        "block_values": (6, 2, 96, 16),
        "epilogue_keys": (1, 2, 96, 16),
        "epilogue_values": (1, 2, 96, 16),
    }
    assert package.states == states
    for function in model.description.functions:
        assert {s.name: tuple(s.type.stateType.arrayType.shape) for s in function.state} == states


def test_functions_that_a_model_does_not_need_are_left_out(packaged: Callable[..., Bundle]) -> None:
    assert PackagePlan(packaged("mobilellm").program).functions == (
        "decode_all",
        "prefill",
        "embed",
        "decode_d0",
        "head",
    )
    window = PackagePlan(packaged("edgeloop-window").program)
    assert [name for name in window.functions if name.startswith("kvfill")] == ["kvfill_d0", "kvfill_d1"]
    shared = PackagePlan(packaged("edgeloop-shared").program)
    assert not [
        name for name in shared.functions if name.startswith("kvfill")
    ]  # nothing is ever missing there
    assert shared.states["block_keys"][0] == 2  # layers, not layers · depths


def test_the_package_says_what_a_host_must_know(packaged: Callable[..., Bundle]) -> None:
    bundle = packaged("edgeloop")
    metadata = read_model(package_of(bundle)).description.metadata.userDefined
    assert json.loads(metadata["edgeloop.spec"])["hidden_size"] == 64
    assert json.loads(metadata["edgeloop.package"])["chunk"] == 16
    assert json.loads(metadata["edgeloop.quantization"]) == {"scheme": "int4", "group_size": 32}
    tokenizer = bundle.manifest.files["tokenizer.json"]
    assert json.loads(metadata["edgeloop.tokenizer"]) == {"sha256": tokenizer.sha256}


def test_a_person_reads_what_the_package_is(packaged: Callable[..., Bundle]) -> None:
    model = read_model(package_of(packaged("mor-middle-cycle")))
    told = model.description.metadata
    assert told.shortDescription == (
        "Recursive transformer (mor): 4 layers stored, 8 applied, 3 depths, width 64, a context of 64 tokens; "
        "weights int4 in groups of 32"
    )
    assert (told.author, told.versionString) == (f"edgeloop {VERSION}", VERSION)
    assert "the checkpoint" in told.license
    functions = {f.name: f for f in model.description.functions}
    texts = {
        name: {x.name: x.shortDescription for x in (*f.input, *f.output)} for name, f in functions.items()
    }
    assert texts["decode_d1"]["hidden"] == "a token's state that enters depth 1"
    assert texts["kvfill_d1"]["hidden"] == "the state of a token that left after depth 1"
    assert {s.name: s.shortDescription for s in functions["head"].state}["block_keys"] == (
        "keys of the layers of the loop: a row for each layer and depth, of 96 tokens"
    )


@pytest.mark.parametrize("kind", ["edgeloop-shared", "mobilellm", "ouro"])
def test_every_feature_of_every_function_is_described(packaged: Callable[..., Bundle], kind: str) -> None:
    """In its own words: no two features of a function share a text."""
    for function in read_model(package_of(packaged(kind))).description.functions:
        texts = [x.shortDescription for x in (*function.input, *function.output, *function.state)]
        assert all(texts)
        assert not [text for text in texts if "{" in text or len(text) > 256]
        assert len(set(texts)) == len(texts), function.name


@pytest.mark.parametrize("kind", ["mor-expert", "mor-token", "edgeloop-routed"])
def test_routers_are_refused_before_any_work(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="choice.* takes models without router"):
        export_bundle(checkpoint(kind), tmp_path / "out", targets=["coreml"])
    assert list(tmp_path.iterdir()) == []


def test_states_that_no_device_holds_are_refused(reading: Callable[[str], Reading]) -> None:
    program = msgspec.structs.replace(reading("ouro").program, context_length=4 << 20)
    with pytest.raises(ExportError, match="GiB of Core ML states.*--context"):
        CoremlTarget().check(program, Recipe.named("int4", 32))


def test_rms_norm_is_safe_where_float16_is_not(packaged: Callable[..., Bundle]) -> None:
    bundle = packaged("ouro")
    rounded, exact = (Interpreter(package_of(bundle), rounding) for rounding in (True, False))
    direction = np.random.default_rng(0).standard_normal((1, 1, bundle.program.width))
    for size in (1e-4, 1.0, 400.0, 20000.0):  # squares that vanish, and that overflow
        hidden = (direction / np.abs(direction).max() * size).astype(np.float16)
        found, wanted = (
            i.run("decode_d0", {"hidden": hidden, "position": np.array([0])}, i.new_states())["next"]
            for i in (rounded, exact)
        )
        assert np.isfinite(found).all()
        assert np.abs(found - wanted).max() <= 1e-2 * np.abs(wanted).max()


def test_parity_refuses_other_weights_and_other_functions(
    packaged: Callable[..., Bundle], oracle: Callable[..., ReferenceBackend]
) -> None:
    package, program = package_of(packaged("edgeloop")), packaged("edgeloop").program
    with pytest.raises(
        ParityError, match=r"coreml disagrees.* in the .*computed in float32.*at most 1e-05 wanted"
    ):
        check_parity(oracle("edgeloop", "int8"), PackagePlan(program), package)
    other = PackagePlan(packaged("mobilellm").program)
    with pytest.raises(
        ParityError, match="disagree about the functions decode_d1, decode_d2, kvfill_d0, kvfill_d1"
    ):
        check_interface(Interpreter(package, rounding=False), other)


def test_a_chunk_may_begin_at_the_last_token_of_the_context(packaged: Callable[..., Bundle]) -> None:
    bundle = packaged("edgeloop")
    interpreter = Interpreter(package_of(bundle), rounding=False)
    states, start = interpreter.new_states(), bundle.program.context_length - 1
    whole = {name: value.copy() for name, value in states.items()}
    ids = np.full((1, 16), 7)
    found = interpreter.run("prefill", {"ids": ids, "position": np.array([start])}, states)
    wanted = interpreter.run("decode_all", {"ids": ids[:, :1], "position": np.array([start])}, whole)
    np.testing.assert_allclose(found["next"][:, :1], wanted["next"], rtol=1e-4, atol=1e-4)


def test_a_package_from_which_something_is_missing(packaged: Callable[..., Bundle], tmp_path: Path) -> None:
    source = package_of(packaged("edgeloop"))
    weights, model = (source / WEIGHTS).read_bytes(), (source / MODEL).read_bytes()
    for name, path, content, message in (
        ("no weights", WEIGHTS, None, "weight.bin"),
        ("half the weights", WEIGHTS, weights[: len(weights) // 2], "weight.bin"),
        ("no model", MODEL, None, "model.mlmodel cannot be read"),
        ("half a model", MODEL, model[: len(model) // 2], "model.mlmodel cannot be read"),
    ):
        package = tmp_path / name
        (package / WEIGHTS).parent.mkdir(parents=True)
        for other, whole in ((WEIGHTS, weights), (MODEL, model)):
            data = content if other == path else whole
            if data is not None:
                (package / other).write_bytes(data)
        with pytest.raises(ExportError, match=message):
            Interpreter(package, rounding=False)


def test_an_operator_that_is_not_known_is_named(packaged: Callable[..., Bundle], tmp_path: Path) -> None:
    source, package = package_of(packaged("edgeloop")), tmp_path / "changed"
    (package / WEIGHTS).parent.mkdir(parents=True)
    (package / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes())
    model = read_model(source)
    operations = model.mlProgram.functions["head"].block_specializations["CoreML8"].operations
    next(op for op in operations if op.type == "rsqrt").type = "erf"
    (package / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="head: the operator erf is not known"):
        Interpreter(package, rounding=False)


def test_a_filled_in_token_is_seen_through_a_sliding_window(packaged: Callable[..., Bundle]) -> None:
    bundle = packaged("edgeloop-window")
    interpreter, window = (
        Interpreter(package_of(bundle), rounding=False),
        bundle.program.window,
    )
    assert window is not None
    random = np.random.default_rng(0)

    def last(states: dict[str, Any], filled: bool) -> Any:
        """The state after the last depth of a token, with the one before it filled in or not."""
        hidden = np.random.default_rng(1).standard_normal((2, 1, 1, bundle.program.width))
        at, behind = np.array([window]), np.array([window + 1])
        left = interpreter.run("decode_d0", {"hidden": hidden[0], "position": at}, states)["next"]
        if filled:
            interpreter.run("kvfill_d0", {"hidden": left, "position": at}, states)
        state = hidden[1]
        for depth in range(bundle.program.depths):
            state = interpreter.run(f"decode_d{depth}", {"hidden": state, "position": behind}, states)["next"]
        return state

    prompt = interpreter.new_states()
    for position in range(window):
        ids = random.integers(0, bundle.program.vocab_size, (1, 1))
        interpreter.run("decode_all", {"ids": ids, "position": np.array([position])}, prompt)
    found = [last({name: value.copy() for name, value in prompt.items()}, filled) for filled in (False, True)]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    # What the window has passed is not seen: the first token's K and V may be anything.
    for value in prompt.values():
        value[:, :, 0] = 7
    np.testing.assert_array_equal(last(prompt, True), found[1])
