"""The onnx target from checkpoint to logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from editing import edit
from forward import AUTHORS
from safetensors.numpy import load_file

from edgeloop.export.pipeline import export_bundle
from edgeloop.export.targets import TARGETS, open_target
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import Manifest, read_manifest
from edgeloop.runtime.engines.backend import F32, Lanes
from edgeloop.runtime.engines.onnx.engine import OnnxBackend
from edgeloop.runtime.engines.packed import PackedLanes
from edgeloop.runtime.engines.table import open_backend
from edgeloop.runtime.errors import ExportError, UsageError
from edgeloop.runtime.session import Session

Bundles = Callable[..., Path]
QUANTIZED = [
    ("mor-lora", "int4", 32),
    ("mobilellm", "int8", 64),
    ("mor-lora", "int8-channel", 32),
    ("ouro", "int4", 128),
]
IDS = np.random.default_rng(5).integers(0, 320, 24)


@pytest.mark.parametrize("name", AUTHORS)
def test_authors_logits(exported: Bundles, parity_folder: Path, name: str) -> None:
    reference = load_file(parity_folder / name / "reference.safetensors")
    with Session.open(exported(name)) as session:
        found = session.logits(reference["input_ids"][0])
    assert np.abs(found - reference[AUTHORS[name]][0]).max() <= 1e-4


@pytest.fixture(params=QUANTIZED, ids=lambda p: "-".join(map(str, p)))
def bundle(request: pytest.FixtureRequest, exported: Bundles) -> Path:
    return exported(*request.param)


@pytest.fixture
def engines(bundle: Path) -> Iterator[tuple[Session, Session]]:
    with Session.open(bundle) as onnx, Session.open(bundle, engine="reference") as reference:
        yield onnx, reference


def test_quantized_logits_on_both_engines(engines: tuple[Session, Session]) -> None:
    """Engine onnx rounds activations to int8, the reference does not: near, and the same choice where it is clear."""
    found, wanted = (session.logits(IDS) for session in engines)
    near = np.abs(found - wanted).max()
    assert near <= 0.1 * np.abs(wanted).max()
    first, second = np.sort(wanted)[:, -1], np.sort(wanted)[:, -2]
    clear = first - second > 2 * near
    assert clear.sum() >= len(clear) // 2  # else nothing was compared
    np.testing.assert_array_equal(found.argmax(-1)[clear], wanted.argmax(-1)[clear])


def test_generating_is_the_argmax_of_logits(engines: tuple[Session, Session]) -> None:
    session, _ = engines
    ids = list(IDS[:5])
    for step in session.generate(ids, max_tokens=4):
        logits = session_logits(session, ids)
        # Prefill and decode round activations alike, yet not bit for bit.
        assert logits[-1][step.token] >= logits[-1].max() - 0.05 * np.abs(logits).max()
        ids.append(step.token)


def session_logits(session: Session, ids: list[int]) -> F32:
    with Session.open(session.bundle.folder) as other:
        return other.logits(ids)


@pytest.mark.parametrize("kind", ["rec_middle_cycle", "relax_lora_middle_cycle", "ouro_tiny"])
def test_lanes_of_mixed_depth_and_length(exported: Bundles, kind: str) -> None:
    """One call with lanes of several depths, one idle and some padded, on engine onnx and on the reference."""
    bundle = Bundle.open(exported(kind))
    engines = [open_backend(name, bundle) for name in ("onnx", "reference")]
    depth, cached = np.array([2, 0, 1, 2]), np.array([5, 0, 3, 9], np.int32)
    tokens = np.array([3, 1, 0, 2], np.int32)
    positions = cached[:, None] + np.arange(3)
    lanes = Lanes(depth, cached, tokens, positions, first_slot=1)
    state = np.random.default_rng(2).standard_normal((4, 3, bundle.program.width)).astype(np.float32)
    states, caches = [], []
    for engine in engines:
        random = np.random.default_rng(1)
        cache = engine.new_cache(2, 16)
        arrays = [array for pair in cache.stages["block"] for array in pair]
        for array in arrays:
            array[:] = random.standard_normal(array.shape)
        states.append(engine.block(state, lanes, cache).copy())
        caches.append(arrays)
    for b, n in enumerate(tokens):
        np.testing.assert_allclose(states[0][b, :n], states[1][b, :n], atol=2e-4)
        for ours, theirs in zip(*caches, strict=True):
            end = cached[b] + n
            np.testing.assert_allclose(ours[b + 1, :, :end], theirs[b + 1, :, :end], atol=1e-4)


@pytest.mark.parametrize("kind", ["mor-lora", "ouro"])
def test_a_token_does_not_depend_on_the_others_of_its_call(exported: Bundles, kind: str) -> None:
    bundle = Bundle.open(exported(kind, "int8-channel"))
    plain, packed = (open_backend("onnx", bundle, None, packed=packed) for packed in (False, True))
    program, n = plain.program, plain.program.depths
    state = np.random.default_rng(4).standard_normal((n, 1, program.width)).astype(np.float32)

    def lanes(first: int, count: int) -> tuple[np.ndarray, ...]:
        depth = np.arange(first, first + count)
        return depth, np.zeros(count, np.int32), np.ones(count, np.int32), np.zeros((count, 1), np.int64)

    cache = plain.new_cache(1, 4)
    together = plain.block(state, Lanes(*lanes(0, n)), cache).copy()
    among = packed.block(state, PackedLanes(*lanes(0, n)), packed.new_cache(1, 4))
    np.testing.assert_array_equal(among, together)
    for depth in range(n):
        alone = plain.block(state[depth : depth + 1], Lanes(*lanes(depth, 1), first_slot=depth), cache)
        np.testing.assert_array_equal(alone[0], together[depth])


def test_parity_is_in_the_manifest(bundle: Path) -> None:
    manifest: Manifest = read_manifest(bundle)
    parity = manifest.targets["onnx"].parity
    assert len(parity.per_depth) == manifest.program.depths
    assert max(*parity.per_depth, parity.logits) < 1e-4
    assert 0 < parity.shipped <= parity.bound
    assert 1e-3 < parity.bound < 0.3


def test_ids_out_of_range_are_refused(exported: Bundles) -> None:
    """The engine itself would take a row of zeros for them."""
    with Session.open(exported("rec_middle_cycle")) as session:
        for wrong in (-1, 97, 2**40):
            with pytest.raises(
                UsageError, match=f"token id {wrong} is not in the vocabulary, wanted 0 to 96"
            ):
                session.logits([1, wrong, 2])


def test_the_whole_context(exported: Bundles) -> None:
    """Positions up to the last one, in every chunk size that the loop makes."""
    with Session.open(exported("mor-lora", "int4")) as session:
        ids = np.random.default_rng(0).integers(0, 320, session.program.context_length)
        assert np.isfinite(session.logits(ids)).all()


def test_a_longer_context_costs_nothing(checkpoint: Bundles, tmp_path: Path) -> None:
    """Tables that follow from a formula are not stored, and made for the positions that a cache has room for."""
    found = []
    for context in (64, 1 << 18):
        folder = tmp_path / f"checkpoint-{context}"
        shutil.copytree(checkpoint("rec_middle_cycle"), folder)
        edit(folder / "config.json", max_position_embeddings=context)
        report = export_bundle(folder, tmp_path / str(context), quant="none")
        assert report.manifest.program.context_length == context
        files = report.manifest.files
        found.append({name: file for name, file in files.items() if name.startswith("onnx/")})
    assert found[0] == found[1]
    ids = np.random.default_rng(3).integers(0, 97, 300)
    with Session.open(report.bundle) as session, Session.open(report.bundle, engine="reference") as reference:
        backend = session.backend
        assert isinstance(backend, OnnxBackend)
        for count, rows in ((10, 256), (300, 512), (20, 512)):  # the second makes the session's cache anew
            ours, wanted = (each.logits(ids[:count]) for each in (session, reference))
            np.testing.assert_allclose(ours, wanted, atol=1e-4 * np.abs(wanted).max())
            assert len(backend.rotary.rows(0)["cos"]) == rows


def test_table_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [open_target(name).name for name in TARGETS] == list(TARGETS)
    with pytest.raises(UsageError, match="unknown target 'abacus': choose from onnx"):
        open_target("abacus")
    monkeypatch.setattr("edgeloop.export.targets.find_spec", lambda name: None if name == "onnx_ir" else True)
    with pytest.raises(ExportError, match=r"target onnx needs onnx_ir: pip install 'edgeloop\[export\]'"):
        open_target("onnx")
