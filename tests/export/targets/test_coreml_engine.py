"""The coreml engine's own logic, with the interpreter in the place of Core ML; and Core ML itself on a Mac."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from tiny import altered

from edgeloop.export.bounds import difference
from edgeloop.export.families.llama_spec import Segment
from edgeloop.export.parity import trace
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.decode.exits import ExitRule
from edgeloop.runtime.decode.policy_choice import choose_policy
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.coreml.engine import CoremlBackend, unavailable_reason
from edgeloop.runtime.engines.coreml.interpreter import Interpreter
from edgeloop.runtime.engines.coreml.package import Package
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.engines.table import ENGINES, open_backend
from edgeloop.runtime.errors import BundleError, EngineError, UsageError
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session


@pytest.fixture(scope="module")
def bundle(packaged: Callable[..., Bundle]) -> Bundle:
    """A model with layers before and after the loop."""
    return packaged("mor-middle-cycle")


@pytest.fixture
def backend(bundle: Bundle) -> CoremlBackend:
    package = bundle.manifest.targets["coreml"].details_as(Package)
    return CoremlBackend(bundle.program, package, Interpreter(bundle.folder / package.path, rounding=False))


def test_it_computes_what_the_modules_compute(
    backend: CoremlBackend, oracle: Callable[..., ReferenceBackend]
) -> None:
    ids = np.arange(9, dtype=np.int64) * 7
    found, wanted = (
        SequentialDecoder(engine, engine.new_cache(1, 10)).prompt(ids, rows="all")
        for engine in (backend, oracle("mor-middle-cycle", "int4"))
    )
    assert difference(found, wanted) < 1e-3  # norms and RoPE are float16 numbers in the package


class Counted:
    """A runner that counts its calls."""

    def __init__(self, runner: Interpreter) -> None:
        self._runner, self.calls = runner, Counter[str]()

    def new_states(self) -> Any:
        return self._runner.new_states()

    def run(self, name: str, inputs: dict[str, Any], states: Any) -> dict[str, Any]:
        self.calls[name] += 1
        return self._runner.run(name, inputs, states)


@pytest.mark.parametrize("kind", ["mor-middle-cycle", "edgeloop-window", "edgeloop-shared"])
def test_prompts_go_in_by_chunks(kind: str, packaged: Callable[..., Bundle]) -> None:
    bundle = packaged(kind)
    package = bundle.manifest.targets["coreml"].details_as(Package)
    runner = Counted(Interpreter(bundle.folder / package.path, rounding=False))
    engine = CoremlBackend(bundle.program, package, runner)
    ids = np.random.default_rng(0).integers(0, bundle.program.vocab_size, 40)
    chunked, single = (SequentialDecoder(engine, engine.new_cache(1, 44), chunk=35) for _ in range(2))
    found = [chunked.prompt(ids).copy(), chunked.prompt(ids[:1]).copy()]
    # 35 tokens in 3 chunks, none of which wants logits, then 5 in one; then a token by itself.
    assert (runner.calls["prefill"], runner.calls["head"], runner.calls["embed"]) == (4, 2, 1)
    wanted = [single.prompt(ids[i : i + 1]) for i in range(40)][-1:]
    wanted.append(single.prompt(ids[:1]))
    assert runner.calls["prefill"] == 4
    for f, w in zip(found, wanted, strict=True):
        assert difference(f, w) < 1e-5
    chunked.truncate(20) if bundle.program.window is None else chunked.reset()
    chunked.prompt(ids[chunked.cached :], None)
    assert difference(chunked.prompt(ids[:1]), wanted[1]) < 1e-5


def test_whoever_looks_between_the_stages_gets_them_one_by_one(backend: CoremlBackend) -> None:
    ids, seen = np.arange(9, dtype=np.int64) * 7, []
    loop = SequentialDecoder(
        backend, backend.new_cache(1, 10), observe=lambda depth, state: seen.append(depth)
    )
    staged = loop.prompt(ids).copy()
    assert seen == [0, 1, 2]
    assert difference(SequentialDecoder(backend, backend.new_cache(1, 10)).prompt(ids), staged) < 1e-5


def test_left_tokens_are_filled_in(backend: CoremlBackend, oracle: Callable[..., ReferenceBackend]) -> None:
    # Token 1 leaves after depth 0; token 2 goes to the end and sees what was filled in for it.
    results = []
    for engine in (backend, oracle("mor-middle-cycle", "int4")):
        policy = choose_policy(engine.program, {}, {}, "depth:1", "propagate")
        loop = SequentialDecoder(engine, engine.new_cache(1, 8), policy)
        loop.prompt(np.array([3]))
        loop.step(5)
        loop.sequence.rule = ExitRule("depth", 3)
        results.append(loop.step(8).copy())
        assert loop.filled == [3, 3, 3]
    assert difference(*results) < 1e-3


def test_rows_are_in_the_states(backend: CoremlBackend) -> None:
    """A sequence that was copied goes on as the other one does, and a token's rows go to deeper depths."""
    ids = np.random.default_rng(0).integers(0, backend.program.vocab_size, 20)
    one, two = (SequentialDecoder(backend, backend.new_cache(1, 24)) for _ in range(2))
    one.prompt(ids)
    two.cache.copy_sequence(0, one.cache, 0, one.cached, one.filled)
    two.sequence.restore(one.sequence.snapshot())
    assert two.cache.nbytes == one.cache.nbytes > one.cache.used_bytes(20, [20] * 3) > 0
    np.testing.assert_array_equal(one.prompt(ids[:1]).copy(), two.prompt(ids[:1]))
    two.prompt(ids[:2], None)  # and neither writes into the other's states
    one.truncate(15)
    wanted = SequentialDecoder(backend, backend.new_cache(1, 24))
    wanted.prompt(ids[:15], None)
    np.testing.assert_array_equal(one.prompt(ids[15:16]).copy(), wanted.prompt(ids[15:16]))
    state = one.sequence.snapshot()
    one.restart(choose_policy(backend.program, {}, {}, "depth:1", "latest"))
    one.sequence.restore(state)
    one.step(int(ids[16]))
    own, *deeper = (one.cache.read_rows("block", depth, 16, 1) for depth in range(3))
    for rows in deeper:
        np.testing.assert_array_equal(np.array(rows), np.array(own))
    assert np.array(own).any()


def test_lanes_that_it_cannot_place_are_refused(backend: CoremlBackend) -> None:
    cache = backend.new_cache(1, 8)
    state = np.zeros((1, 1, 64), np.float32)
    with pytest.raises(UsageError, match="depth 1 in the KV slot of depth 0"):
        backend.block(state, Lanes.single(1, 0, 1, 0), cache)
    elsewhere = Lanes(np.array([0]), np.array([2]), np.array([1]), np.array([[5]]))
    with pytest.raises(UsageError, match="row is not their position"):
        backend.block(state, elsewhere, cache)
    with pytest.raises(UsageError, match="no token leaves before depth 0"):
        backend.fill(state, Lanes.single(0, 0, 1, 0), cache)
    with pytest.raises(UsageError, match="1 KV slots a sequence"):
        backend.new_cache(1, 8, slots=1)
    with pytest.raises(UsageError, match="hold 96"):
        backend.new_cache(1, 97)


def test_the_interpreter_is_an_engine(
    packaged: Callable[..., Bundle], oracle: Callable[..., ReferenceBackend]
) -> None:
    ids = np.arange(1, 20)
    with Session.open(packaged("mor-middle-cycle").folder, engine="coreml-reference") as session:
        found = session.logits(ids)
        assert session.backend.name == "coreml-reference"
    modules = oracle("mor-middle-cycle", "int4")
    wanted = SequentialDecoder(modules, modules.new_cache(1, 20)).prompt(ids, "all")
    assert 1e-5 < difference(found, wanted) < 5e-3  # float16
    with pytest.raises(
        UsageError,
        match="engine coreml-reference: it takes one lane at a time, and many users need packed lanes; use",
    ):
        BatchServer.open(packaged("mor-middle-cycle").folder, engine="coreml-reference")


@pytest.mark.skipif(unavailable_reason() == "", reason="this computer has Core ML")
def test_elsewhere_it_says_why(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="engine coreml needs macOS 15 or newer, this is"):
        open_backend("coreml", bundle)


@pytest.mark.skipif(unavailable_reason() != "", reason=f"engine coreml {unavailable_reason()}")
def test_core_ml_computes_what_the_interpreter_computes(bundle: Bundle, backend: CoremlBackend) -> None:
    found, wanted = trace(open_backend("coreml", bundle)), trace(backend)
    assert difference(found.logits, wanted.logits) < 2e-2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": 32}, "embed makes .*, wanted 32 numbers"),
        ({"vocab_size": 100}, "head makes .*, wanted 100 numbers"),
        ({"kv_heads": 4}, "its state prologue_keys is"),
        ({"segments": (Segment(1), Segment(2, 4), Segment(1))}, "it has no function decode_d3"),
        ({"segments": (Segment(1), Segment(2, 2), Segment(1))}, "its state block_keys is"),
    ],
)
def test_a_package_of_another_model_is_refused(bundle: Bundle, change: dict[str, Any], told: str) -> None:
    manifest = structs.replace(bundle.manifest, program=altered(bundle.program, **change))
    with pytest.raises(BundleError, match=f"model.mlpackage is of another model .*: {told}"):
        open_backend("coreml-reference", Bundle(bundle.folder, manifest))


def test_a_package_that_is_described_as_another_is_refused(bundle: Bundle) -> None:
    target = bundle.manifest.targets["coreml"]
    said = target.details_as(Package)
    functions = {**said.functions, "more": "cpuOnly"}
    for change, told in (
        ({"chunk": 3}, "prefill takes"),
        ({"functions": functions}, "the function more is only in"),
    ):
        package = structs.replace(said, **change)  # type: ignore[arg-type]
        targets = {"coreml": structs.replace(target, details=package)}
        with pytest.raises(BundleError, match=told):
            open_backend(
                "coreml-reference", Bundle(bundle.folder, structs.replace(bundle.manifest, targets=targets))
            )


def test_it_closes_twice(bundle: Bundle) -> None:
    engine = open_backend("coreml-reference", bundle)
    assert engine.can is ENGINES["coreml-reference"].can
    engine.close()
    engine.close()
