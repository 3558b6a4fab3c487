"""KV that depths share, sliding windows, and K and V filled in: the reference engine and onnx agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import forward
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file as load_torch
from tiny import altered

from edgeloop.export.families.llama_spec import Spec
from edgeloop.export.family import Reading
from edgeloop.export.reference import reference_engine
from edgeloop.export.stored import write_weights
from edgeloop.export.target import Job
from edgeloop.export.targets.onnx.target import OnnxTarget
from edgeloop.export.weights import tensor_spans
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import F32, Backend, Lanes
from edgeloop.runtime.engines.kv import KVCache
from edgeloop.runtime.engines.onnx.engine import OnnxBackend
from edgeloop.runtime.engines.onnx.session import _PLANS
from edgeloop.runtime.errors import EngineError, UsageError

IDS = np.random.default_rng(5).integers(0, 97, 31)
ENGINES = ("reference", "onnx")
WINDOW = {"sliding_window": 5}
SHARED = {"kv": "shared"}


class Model:
    """A tiny model with a changed program, on every engine."""

    def __init__(self, reading: Reading, quant: str, folder: Path) -> None:
        recipe = Recipe.named(quant, 32)
        self.reading, self.program, self.folder = reading, reading.program, folder
        weights = folder / "scratch.safetensors"
        write_weights(reading, recipe, weights)
        target = OnnxTarget()
        target.check(self.program, recipe)
        self.target = target.export(Job(self.program, recipe, weights, folder, lambda step, part: None))
        self.graphs = {stage: folder / name for stage, name in self.target.graphs.items()}
        self.engines: dict[str, Backend] = {
            "reference": reference_engine(self.program, weights, recipe),
            "onnx": OnnxBackend(self.program, self.graphs),
        }


Models = Callable[..., Model]


@pytest.fixture(scope="module")
def models(reading: Callable[[str], Reading], tmp_path_factory: pytest.TempPathFactory) -> Models:
    """``models("mor-lora", "int4", kv="shared")``, made once each."""
    made: dict[object, Model] = {}

    def get(kind: str, quant: str = "none", **changes: object) -> Model:
        key = (kind, quant, *changes.items())
        if key not in made:
            program = altered(reading(kind).program, **changes)
            made[key] = Model(
                replace(reading(kind), program=program), quant, tmp_path_factory.mktemp("model")
            )
        return made[key]

    return get


@pytest.fixture(autouse=True)
def _little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tokens leave a window within a few steps."""
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 3)


def run(backend: Backend, pieces: list[int], slots: int | None = None) -> tuple[list[F32], F32, KVCache]:
    """The states after each depth, the logits, and the caches, for IDS in ``pieces``."""
    states: list[list[F32]] = [[] for _ in range(backend.program.depths)]
    cache = backend.new_cache(1, len(IDS), slots)
    loop = SequentialDecoder(
        backend, cache, observe=lambda depth, state: states[depth].append(state[0].copy())
    )
    start, logits = 0, []
    for size in pieces:
        logits.append(loop.prompt(IDS[start : start + size], rows="all").copy())
        start += size
    return [np.concatenate(s) for s in states], np.concatenate(logits), cache


def near(found: F32, wanted: F32, bound: float = 1e-4) -> bool:
    return bool(np.abs(found - wanted).max() <= bound * max(1.0, float(np.abs(wanted).max())))


PIECES = {
    "at once": [31],
    "chunks": [7, 16, 8],
    "prompt and tokens": [11, 5, *[1] * 15],
    "tokens": [1] * 31,
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize(
    "changes", [SHARED, WINDOW, SHARED | WINDOW, {}], ids=["shared", "window", "shared window", "plain"]
)
@pytest.mark.parametrize("kind", ["mor-lora", "mor-norms", "ouro"])
def test_engines_agree_after_every_depth(
    models: Models, kind: str, changes: dict[str, object], pieces: list[int]
) -> None:
    model = models(kind, **changes)
    states, logits, caches = run(model.engines["reference"], [31])
    for engine in model.engines.values():
        found, rows, cache = run(engine, pieces)
        assert all(near(f, w) for f, w in zip(found, states, strict=True)), engine.name
        assert near(rows, logits), engine.name
        resident = 31 if cache.window is None else 7  # 31 tokens, 8 rows, 5 seen: 4 go at once
        for stage, pairs in cache.stages.items():
            for pair, wanted in zip(pairs, caches.stages[stage], strict=True):
                for a, b in zip(pair, wanted, strict=True):
                    assert near(a[:, :, :resident], b[:, :, :resident]), (engine.name, stage)


@pytest.mark.parametrize(
    "changes", [SHARED, WINDOW, SHARED | WINDOW], ids=["shared", "window", "shared window"]
)
@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_quantized(models: Models, quant: str, changes: dict[str, object]) -> None:
    """Parity was checked by the target; here, that the shipped graphs run token by token."""
    model = models("mor-lora", quant, **changes)
    assert max(*model.target.parity.per_depth, model.target.parity.logits) < 1e-4
    _, wanted, _ = run(model.engines["reference"], [31])
    _, found, _ = run(model.engines["onnx"], [11, *[1] * 20])
    assert near(found, wanted, 0.2)


def forward_with(reading: Reading, program: Spec, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> F32:
    """tests/forward.py with a mask of the window."""
    full = torch.full
    length, window = len(ids), program.window

    def masked(size: tuple[int, int], value: float) -> torch.Tensor:
        assert size == (length, length)
        assert window is not None
        old = torch.arange(length)[:, None] - torch.arange(length)[None] >= window
        return full(size, value).triu(1) + torch.zeros(size).masked_fill(old, value)

    class Mask:
        """``torch.full(…).triu(1)`` of the plain forward becomes this mask."""

        def __init__(self, size: tuple[int, int], value: float) -> None:
            self.mask = masked(size, value)

        def triu(self, _: int) -> torch.Tensor:
            return self.mask

    monkeypatch.setattr(torch, "full", Mask)
    result: F32 = forward.logits(reading, torch.from_numpy(ids)).numpy()
    monkeypatch.undo()
    return result


@pytest.mark.parametrize("kind", ["mor-lora", "ouro", "mobilellm"])
def test_a_window_is_a_mask(models: Models, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = models(kind, **WINDOW)
    found = {name: run(model.engines[name], [9, *[1] * 22])[1] for name in ENGINES}
    cache = model.engines["onnx"].new_cache(1, 31)
    assert cache.rows == 8
    assert cache.nbytes == 8 * model.program.kv_bytes_per_token
    wanted = forward_with(model.reading, model.program, IDS, monkeypatch)
    for name in ENGINES:
        assert near(found[name], wanted), name


def test_windows_of_several_lanes(models: Models) -> None:
    """Lanes of different depth, length and number of new tokens, one idle, beyond the rows that there are."""
    model = models("mor-lora", **WINDOW)
    cached, tokens = np.zeros(3, np.int32), np.array([[6, 1, 3], [1, 0, 12], [9, 4, 0], [1, 1, 1]], np.int32)
    random = np.random.default_rng(0)
    caches = {name: model.engines[name].new_cache(1, 31) for name in ENGINES}
    for valid in tokens:
        width = int(valid.max())
        state = random.standard_normal((3, width, 64)).astype(np.float32)
        lanes = Lanes(np.array([2, 0, 1]), cached, valid, cached[:, None] + np.arange(width))
        found = {n: model.engines[n].block(state, lanes, caches[n]).copy() for n in ENGINES}
        for b in np.flatnonzero(valid):
            for name in ENGINES:
                assert near(found[name][b, : valid[b]], found["reference"][b, : valid[b]]), name
        cached = cached + valid


@pytest.mark.parametrize("engine", ENGINES)
def test_the_authors_logits_with_shared_keys_and_values(
    models: Models, parity_folder: Path, engine: str
) -> None:
    model = models("rec_cycle_kvshare", kv="shared")
    reference = load_torch(parity_folder / "rec_cycle_kvshare" / "reference.safetensors")
    ids, wanted = reference["input_ids"][0].numpy(), reference["logits_use_cache_True"][0].numpy()
    assert not near(reference["logits_use_cache_False"][0].numpy(), wanted, 1e-2)
    for pieces in ([14], [9, 1, 1, 1, 1, 1], [3, 11]):
        backend, start = model.engines[engine], 0
        loop = SequentialDecoder(backend, backend.new_cache(1, 14))
        for size in pieces:
            found = loop.prompt(ids[start : start + size], rows="all")
            assert np.abs(found - wanted[start : start + size]).max() <= 2e-5
            start += size


@pytest.mark.parametrize("engine", ENGINES)
def test_lanes_of_depths_that_share(models: Models, engine: str) -> None:
    """Several sequences, a token each: the deeper depths leave the caches as they are."""
    backend = models("mor-lora", **SHARED).engines[engine]
    random = np.random.default_rng(0)
    together, alone = backend.new_cache(3, 8), backend.new_cache(3, 8)
    for pair, other in zip(together.stages["block"], alone.stages["block"], strict=True):
        for a, b in zip(pair, other, strict=True):
            a[:] = random.standard_normal(a.shape)
            b[:] = a
    cached, ones = np.array([5, 0, 2], np.int32), np.ones(3, np.int32)
    for depth in ([0, 0, 0], [1, 2, 1]):
        before = [a.copy() for pair in together.stages["block"] for a in pair]
        state = random.standard_normal((3, 1, 64)).astype(np.float32)
        lanes = Lanes(np.array(depth), cached, ones, cached[:, None].astype(np.int64))
        found = backend.block(state, lanes, together).copy()
        for b in range(3):
            single = Lanes.single(depth[b], int(cached[b]), 1, b)
            assert near(found[b], backend.block(state[b : b + 1], single, alone)[0])
        after = [a for pair in together.stages["block"] for a in pair]
        untouched = [np.array_equal(x, y) for x, y in zip(before, after, strict=True)]
        assert all(untouched) if depth[0] else not any(untouched)
    mixed = Lanes(np.array([0, 1, 2]), cached, ones, cached[:, None].astype(np.int64))
    with pytest.raises(UsageError, match="call depth 0 first"):
        backend.block(np.zeros((3, 1, 64), np.float32), mixed, together)


def test_weights_of_a_block_that_shares_are_stored_once(models: Models) -> None:
    model = models("mor-lora", "int4", **SHARED)
    graph = onnx.load(model.graphs["block"], load_external_data=False).graph
    placed = tensor_spans(model.graphs["block"].with_name("weights.safetensors"))
    for tensor in graph.initializer:
        if not tensor.name.endswith(("q_proj.codes", "kv_proj.codes", "q_proj.scales", "kv_proj.scales")):
            continue
        entry = {e.key: e.value for e in tensor.external_data}
        prefix, part, side = tensor.name.rsplit(".", 2)
        whole = placed[f"{prefix}.qkv_proj.{side}"]
        offset, length = int(entry["offset"]), int(entry["length"])
        assert length == whole.length // 2  # 4 query heads, 2 of keys and 2 of values
        assert offset == whole.offset + (length if part == "kv_proj" else 0)
    assert "fill" not in model.graphs
    assert [i.name for i in graph.input][:6] == ["state", "depth", "positions", "last", "longest", "fresh"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["mor-lora", "mor-norms", "ouro"])
def test_filled_keys_and_values_of_the_first_layer_are_its_own(
    models: Models, kind: str, engine: str
) -> None:
    """Filling with the state that a depth starts from: the first layer's rows are those of a pass, at every depth."""
    backend = models(kind).engines[engine]
    states, _, passed = run(backend, [20, 11])
    filled = backend.new_cache(1, 31)
    for depth in (1, 2):
        for start, size in ((0, 20), (20, 1), (21, 10)):
            lanes = Lanes.single(depth, start, size, depth)
            backend.fill(states[depth - 1][None, start : start + size], lanes, filled)
    for a, b in zip(filled.stages["block"][0], passed.stages["block"][0], strict=True):
        assert near(a[1:], b[1:])
        assert not a[0].any()


def test_filling_several_depths_at_once(models: Models) -> None:
    """Padding is not written, and all engines write the same into every layer."""
    model = models("mor-lora")
    random = np.random.default_rng(0)
    state = np.tile(random.standard_normal((1, 3, 64)), (2, 1, 1)).astype(np.float32)
    cached = np.array([4, 7], np.int32)
    lanes = Lanes(np.array([1, 2]), cached, np.array([3, 2]), cached[:, None] + np.arange(3), first_slot=1)
    caches = {name: model.engines[name].new_cache(1, 12) for name in ENGINES}
    for name in ENGINES:
        model.engines[name].fill(state, lanes, caches[name])
    for layer, pair in enumerate(caches["reference"].stages["block"]):
        for side, array in enumerate(pair):
            written = array.any(axis=(1, 3))
            assert [np.flatnonzero(w).tolist() for w in written] == [[], [4, 5, 6], [7, 8]]
            for name in ENGINES:
                assert near(caches[name].stages["block"][layer][side], array), name


def test_the_fill_graph_is_opened_when_it_is_needed(models: Models) -> None:
    model = models("mor-lora")
    graphs = {stage: path for stage, path in model.graphs.items() if stage != "fill"}
    backend = OnnxBackend(model.program, graphs)
    state, lanes, cache = np.zeros((1, 1, 64), np.float32), Lanes.single(1, 0, 1, 1), backend.new_cache(1, 8)
    with pytest.raises(EngineError, match="the bundle has no fill graph"):
        backend.fill(state, lanes, cache)
    backend = OnnxBackend(model.program, graphs | {"fill": Path("nowhere.onnx")})  # nothing is read yet
    with pytest.raises(EngineError, match=r"cannot load nowhere\.onnx"):
        backend.fill(state, lanes, cache)


@pytest.mark.parametrize("kind", ["mor-lora", "ouro"])
def test_one_slot_for_all_depths(models: Models, kind: str) -> None:
    """A token sees itself at its own depth, and the tokens before it at the last one, whose rows stay."""
    model = models(kind)
    wanted = run(model.engines["reference"], [1] * 31, slots=1)
    for name in ENGINES:
        states, logits, cache = run(model.engines[name], [1] * 31, slots=1)
        assert cache.stages["block"][0][0].shape[0] == 1
        assert all(near(f, w) for f, w in zip(states, wanted[0], strict=True))
        assert near(logits, wanted[1])
        for pair, other in zip(cache.stages["block"], wanted[2].stages["block"], strict=True):
            assert near(np.stack(pair), np.stack(other))
    assert not near(wanted[1], run(model.engines["reference"], [1] * 31)[1], 1e-3)


def test_the_oldest_plan_goes_first(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = models("mor-lora").engines["onnx"]
    assert isinstance(backend, OnnxBackend)
    cache, graph = backend.new_cache(1, 8), backend._blocks[0]
    calls = [Lanes.single(0, 0, 1, 0) for _ in range(_PLANS + 1)]
    first, second, *_ = (graph.plan(lanes, 0, cache) for lanes in calls[:_PLANS])
    assert graph.plan(calls[0], 0, cache) is first  # used again: the second is now the oldest
    graph.plan(calls[-1], 0, cache)
    assert graph.plan(calls[0], 0, cache) is first
    assert graph.plan(calls[1], 0, cache) is not second
    monkeypatch.setattr("edgeloop.runtime.engines.onnx.session._PLAN_BYTES", 3 * first.output.nbytes)
    kept = graph.plan(calls[0], 0, cache)
    graph.plan(Lanes.single(0, 0, 1, 0), 0, cache)
    assert len(graph._plans[cache]) == 3
    assert graph.plan(calls[0], 0, cache) is kept
