"""The coreml engine's own logic, with the interpreter in the place of Core ML; and Core ML itself on a Mac."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeloop.export.coreml.interpreter import Interpreter
from edgeloop.export.oracle import Oracle
from edgeloop.export.parity import difference, trace
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.backend import Lanes
from edgeloop.runtime.backends import open_backend
from edgeloop.runtime.backends.coreml import CoremlBackend, why_not
from edgeloop.runtime.bundle import Bundle
from edgeloop.runtime.errors import EngineError, UsageError
from edgeloop.runtime.loop import DepthLoop


@pytest.fixture(scope="module")
def bundle(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model with layers before and after the loop."""
    out = tmp_path_factory.mktemp("engine") / "bundle"
    export_bundle(checkpoint("mor-middle-cycle"), out, targets=["coreml"], quant="int4")
    return Bundle.open(out)


@pytest.fixture
def backend(bundle: Bundle) -> CoremlBackend:
    package = bundle.manifest.targets["coreml"].package
    assert package is not None
    return CoremlBackend(bundle.spec, package, Interpreter(bundle.folder / package.path, rounding=False))


def test_it_computes_what_the_modules_compute(backend: CoremlBackend, oracle: Callable[..., Oracle]) -> None:
    ids = np.arange(9, dtype=np.int64) * 7
    found, wanted = (
        DepthLoop(engine, engine.new_cache(1, 10)).forward(ids, rows="all")
        for engine in (backend, oracle("mor-middle-cycle", "int4"))
    )
    assert difference(found, wanted) < 1e-3  # norms and RoPE are float16 numbers in the package


def test_left_tokens_are_filled_in(backend: CoremlBackend, oracle: Callable[..., Oracle]) -> None:
    # Token 1 leaves after depth 0; token 2 goes to the end and sees what was filled in for it.
    results = []
    for engine in (backend, oracle("mor-middle-cycle", "int4")):
        loop = DepthLoop(engine, engine.new_cache(1, 8))
        loop.forward(np.array([3]))
        state = loop.at_depth(0, loop.enter(np.array([5])))
        left = state.copy()
        loop.cached += 1
        for depth in (1, 2):
            loop.fill_in(depth, left)
        results.append(loop.forward(np.array([8])).copy())
    assert difference(*results) < 1e-3


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


@pytest.mark.skipif(why_not() == "", reason="this computer has Core ML")
def test_elsewhere_it_says_why(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="engine coreml needs macOS 15 or newer, this is"):
        open_backend("coreml", bundle)


@pytest.mark.skipif(why_not() != "", reason=f"engine coreml {why_not()}")
def test_core_ml_computes_what_the_interpreter_computes(bundle: Bundle, backend: CoremlBackend) -> None:
    found, wanted = trace(open_backend("coreml", bundle)), trace(backend)
    assert difference(found.logits, wanted.logits) < 2e-2
