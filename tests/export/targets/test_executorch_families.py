"""Families whose layers are not Llama's, on ExecuTorch: a fixture each, against what its authors' code computed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edgeloop.export.bounds import EXACT
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.decode.sequential import SequentialDecoder

pytest.importorskip("executorch")
from edgeloop.export.targets.executorch.flat_program import FlatProgram
from edgeloop.export.targets.executorch.target import ExecutorchTarget
from edgeloop.runtime.engines.executorch.layout import Shapes

F32 = npt.NDArray[np.float32]
Bundles = Callable[[str, str], Path]
BOUND = 1e-4  # of logits up to 9: measured 1e-5


@pytest.fixture(scope="module")
def bundle(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """``bundle("fold_pythia", "none")``, with chunks of 8."""
    root = tmp_path_factory.mktemp("families")

    def get(name: str, quant: str) -> Path:
        path = root / f"{name}-{quant}"
        if not path.exists():
            with pytest.MonkeyPatch.context() as patch:
                # An encoder's texts are whole.
                target = ExecutorchTarget(None if name.startswith("albert") else Shapes(1, 8))
                patch.setattr("edgeloop.export.pipeline.open_target", lambda name, layout, options: target)
                export_bundle(checkpoint(name), path, targets=["executorch"], quant=quant)
        return path

    return get


@pytest.fixture
def authors(checkpoint: Callable[[str], Path]) -> Callable[[str], dict[str, npt.NDArray[Any]]]:
    """Logits [S, V] by their names, and the ``input_ids`` [S]."""

    def get(name: str) -> dict[str, npt.NDArray[Any]]:
        found = load_file(checkpoint(name) / "reference.safetensors")
        return {key: array[0] for key, array in found.items()}

    return get


def decoded(session: Session, ids: npt.NDArray[np.int64]) -> F32:
    """Nine tokens at once, then one by one."""
    loop = SequentialDecoder(session.backend, session.backend.new_cache(1, len(ids)))
    parts = [loop.prompt(ids[:9], "all").copy()]
    parts += [loop.prompt(ids[i : i + 1]).copy() for i in range(9, len(ids))]
    return np.concatenate(parts)


def test_gpt_neox(
    bundle: Bundles, authors: Callable[[str], dict[str, npt.NDArray[Any]]], runner: Path
) -> None:
    """Parallel residual, LayerNorm with bias, biases, a part of each head turned; the native runner, too."""
    wanted = authors("fold_pythia")
    ids, path = wanted["input_ids"], bundle("fold_pythia", "none")
    with Session.open(path, engine="executorch", threads=1) as session:
        np.testing.assert_allclose(session.logits(ids), wanted["logits_use_cache_False"], atol=BOUND)
        np.testing.assert_allclose(decoded(session, ids), wanted["logits_use_cache_False"], atol=BOUND)
        tokens = [step.token for step in session.generate(ids.tolist(), max_tokens=8)]
    assert tokens == wanted["greedy_8"].tolist()
    command = [str(runner), str(path), "8", *map(str, ids)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == tokens


def test_biases_beside_codes(bundle: Bundles) -> None:
    parity = Bundle.open(bundle("fold_pythia", "int8-channel")).manifest.targets["executorch"].parity
    assert max(*parity.per_depth, parity.logits) < EXACT


def test_gpt_neox_flat(
    checkpoint: Callable[[str], Path],
    authors: Callable[[str], dict[str, npt.NDArray[Any]]],
    tmp_path: Path,
) -> None:
    wanted = authors("fold_pythia")
    path = tmp_path / "bundle"
    export_bundle(checkpoint("fold_pythia"), path, targets=["executorch"], layouts=["flat"], quant="none")
    program, ids = FlatProgram(path / "executorch-flat" / "model.pte"), wanted["input_ids"].tolist()
    found = [program.logits(ids[:9], 0), *(program.logits(ids[i : i + 1], i) for i in range(9, len(ids)))]
    np.testing.assert_allclose(found, wanted["logits_use_cache_False"][8:], atol=BOUND)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_huginn(bundle: Bundles, authors: Callable[[str], dict[str, npt.NDArray[Any]]], depth: int) -> None:
    """State and prologue output through an adapter, neighbours that turn against each other; any number of depths."""
    wanted = authors("huginn_tiny")
    ids = wanted["input_ids"]
    with Session.open(bundle("huginn_tiny", "none"), engine="executorch", threads=1, depth=depth) as session:
        np.testing.assert_allclose(session.logits(ids), wanted[f"logits_full_r{depth}"], atol=BOUND)
        np.testing.assert_allclose(decoded(session, ids), wanted[f"logits_full_r{depth}"], atol=BOUND)


RECURRENT = ("retrofit_llama32", "retrofit_tinyllama", "retrofit_olmo2_skip_adapter", "parcae_diag")


@pytest.mark.parametrize("name", RECURRENT)
def test_made_recurrent(
    bundle: Bundles, authors: Callable[[str], dict[str, npt.NDArray[Any]]], name: str
) -> None:
    """After every depth that the authors ran, beyond those of training too, at once and cached; and with drafts."""
    wanted = authors(name)
    ids, path = wanted["input_ids"], bundle(name, "none")
    for depth in (1, 2, 4, 8):
        with Session.open(path, engine="executorch", threads=1, depth=depth) as session:
            np.testing.assert_allclose(session.logits(ids), wanted[f"logits_full_r{depth}"], atol=BOUND)
            np.testing.assert_allclose(decoded(session, ids), wanted[f"logits_full_r{depth}"], atol=BOUND)
    for decode in ("sequential", "pipelined"):
        with Session.open(path, engine="executorch", threads=1, depth=4, decode=decode) as session:
            tokens = [step.token for step in session.generate(ids.tolist(), max_tokens=8)]
        assert tokens == wanted["greedy_8_r4"].tolist()


def test_albert(bundle: Bundles, checkpoint: Callable[[str], Path]) -> None:
    """Groups of layers, each a block; norms behind the sums; whole texts of several lengths, padded."""
    name = "albert_g2_inner2_padded"
    reference = load_file(checkpoint(name) / "reference.safetensors")
    seen = reference["attention_mask"].astype(bool)
    texts = [ids[own] for ids, own in zip(reference["input_ids"], seen, strict=True)]
    with Session.open(bundle(name, "none"), engine="executorch", threads=1) as session:
        for depth in (1, 5, 8):
            found = session.encode(texts, depth=depth, logits=True)
            assert found.logits is not None
            assert np.abs(found.states - reference["hidden_states"][depth])[seen].max() <= BOUND
            assert np.abs(found.logits - reference[f"logits_after_block_{depth}"])[seen].max() <= BOUND


OTHERS = ("nanbeige_losswts_qknorm_bias", "fold_gemma2")
"""Between them: norms of heads, biases, caps, a window on some layers, norms of outputs, GELU by tanh."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_families(
    bundle: Bundles, authors: Callable[[str], dict[str, npt.NDArray[Any]]], name: str
) -> None:
    wanted = authors(name)
    ids = wanted["input_ids"]
    with Session.open(bundle(name, "none"), engine="executorch", threads=1) as session:
        np.testing.assert_allclose(session.logits(ids), wanted["logits_use_cache_False"], atol=BOUND)
        np.testing.assert_allclose(decoded(session, ids), wanted["logits_incremental_prefill9"], atol=BOUND)
