"""Families whose layers are not Llama's, as Core ML packages: nothing in the target knows of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from family_runs import authors, full
from safetensors.numpy import load_file

from edgeloop.export.bounds import MARGIN, RUNS, difference
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.targets.coreml.errors import EXACT, MOST, SHIPPED, Errors, shipped
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import ParityError
from edgeloop.runtime.model.activations import half_either_way
from edgeloop.runtime.session import Session


@pytest.mark.parametrize(("quant", "ane"), [("none", False), ("int4", False), ("int4", True)])
def test_gpt_neox(checkpoint: Callable[[str], Path], tmp_path: Path, quant: str, ane: bool) -> None:
    source, out = checkpoint("fold_pythia"), tmp_path / "bundle"
    report = export_bundle(source, out, targets=["coreml"], quant=quant, options={"coreml_ane": ane})
    parity = report.manifest.targets["coreml"].parity
    assert 0 < max(*parity.per_depth, parity.logits) <= EXACT
    assert parity.shipped <= SHIPPED
    if quant != "none":
        return
    theirs = load_file(source / "reference.safetensors")
    with Session.open(out, engine="coreml-reference") as session:
        found = session.logits(theirs["input_ids"][0].tolist())
    wanted = theirs["logits_use_cache_False"][0]
    assert difference(found, wanted) < 5e-3  # all of it float16
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


@pytest.mark.parametrize("quant", ["none", "int4"])
def test_huginn(checkpoint: Callable[[str], Path], tmp_path: Path, quant: str) -> None:
    """Two carries, a matrix of both, and 24 layers, of which float16 is less sure than of a few."""
    out = tmp_path / "bundle"
    manifest = export_bundle(checkpoint("huginn_tiny"), out, targets=["coreml"], quant=quant).manifest
    parity = manifest.targets["coreml"].parity
    assert 0 < max(*parity.per_depth, parity.logits) <= EXACT
    assert 1 < shipped(manifest.program) / SHIPPED < 1.25
    assert parity.shipped <= parity.bound <= MOST
    # Beyond what is usual the bound is derived, by rounding each op either way: so on some processors here.
    assert parity.bound == shipped(manifest.program) or parity.shipped > shipped(manifest.program)


@pytest.mark.parametrize(("quant", "ane"), [("none", False), ("int4", True)])
def test_albert(checkpoint: Callable[[str], Path], tmp_path: Path, quant: str, ane: bool) -> None:
    """Texts at once, of several lengths and with types of tokens."""
    source, out = checkpoint("albert_g2_inner2_padded"), tmp_path / "bundle"
    report = export_bundle(source, out, targets=["coreml"], quant=quant, options={"coreml_ane": ane})
    parity = report.manifest.targets["coreml"].parity
    assert 0 < max(*parity.per_depth, parity.logits) <= EXACT
    assert parity.shipped <= SHIPPED
    if quant != "none":
        return
    theirs = load_file(source / "reference.safetensors")
    mask = theirs["attention_mask"].astype(bool)
    texts, types = (
        [row[seen] for row, seen in zip(theirs[name], mask, strict=True)]
        for name in ("input_ids", "token_type_ids")
    )
    with Session.open(out, engine="coreml-reference") as session:
        found = session.encode(texts, types, logits=True).logits
    assert found is not None
    assert difference(found[mask], theirs["logits_token_types"][mask]) < 5e-3  # all of it float16


RECURRENT = {"parcae_diag": (8, 5e-3), "retrofit_llama32": (8, 8e-3), "retrofit_tinyllama": (4, 8e-3)}
"""Depths, and how far the logits after any of them are from the authors' at most, in parts of the largest: measured
2.9e-3, 6.1e-3 after 8 depths of an adapter and two layers, and 6.3e-3 behind two layers before the loop."""


@pytest.mark.parametrize("name", RECURRENT)
def test_made_recurrent(checkpoint: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """After every depth that the authors ran, beyond training's too; a package has its depths from the export."""
    source, out = checkpoint(name), tmp_path / "bundle"
    depths, bound = RECURRENT[name]
    export_bundle(source, out, targets=["coreml"], quant="none", depth=depths)
    theirs = load_file(source / "reference.safetensors")
    for depth in (1, 2, 4, 8):
        if depth <= depths:
            with Session.open(out, engine="coreml-reference", exit=f"depth:{depth}") as session:
                found = session.logits(theirs["input_ids"][0].tolist())
            assert difference(found, theirs[f"logits_full_r{depth}"][0]) < bound


OTHERS = {
    "nanbeige_loops2": 5e-3,
    "nanbeige_losswts_qknorm_bias": 5e-3,
    "fold_qwen2": 5e-3,
    "fold_gemma1": 5e-3,
    "fold_gemma2": 5e-3,
    "fold_olmo2": 5e-3,
}
"""Fixtures, and how far their logits in float16 are from the authors' at most, in parts of the largest."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_families(checkpoint: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    source, out = checkpoint(name), tmp_path / "bundle"
    export_bundle(source, out, targets=["coreml"], quant="none")
    theirs = load_file(source / "reference.safetensors")
    with Session.open(out, engine="coreml-reference") as session:
        found = session.logits(theirs["input_ids"][0].tolist())
    assert difference(found, theirs["logits_use_cache_False"][0]) < OTHERS[name]


@pytest.mark.parametrize("name", ["fold_gemma3", "retrofit_olmo2_skip_adapter"])
def test_keys_behind_a_norm_are_held_to_what_rounding_does(
    checkpoint: Callable[[str], Path], oracle: Callable[..., ReferenceBackend], tmp_path: Path, name: str
) -> None:
    """Their K is divided by its own size: beyond the plain bound, within that of roundings to float16 either way."""
    source, out = checkpoint(name), tmp_path / "bundle"
    manifest = export_bundle(source, out, targets=["coreml"], quant="none").manifest
    parity = manifest.targets["coreml"].parity
    assert 0 < max(*parity.per_depth, parity.logits) <= EXACT
    assert parity.bound is not None
    assert shipped(manifest.program) < parity.shipped <= parity.bound <= MOST
    theirs = authors(source)
    ids, wanted = theirs["input_ids"], theirs["logits_use_cache_False"]
    with Session.open(out, engine="coreml-reference") as session:
        found = difference(session.logits(ids.tolist()), wanted)
    roundings = (half_either_way(np.random.default_rng(seed)) for seed in range(RUNS))
    inherent = [difference(full(oracle(name).with_results(r), ids), wanted) for r in roundings]
    assert found <= MARGIN * max(inherent) <= MOST


def test_a_derived_bound_is_for_what_it_was_derived_for_and_has_an_end() -> None:
    one = np.ones(1, np.float32)
    asked: list[int] = []

    def derive() -> dict[str, float]:
        asked.append(1)
        return {"keys": 0.02, "values": float("inf")}

    errors = Errors(5e-3, "float16", derive)
    errors.compare("the logits", one * 1.004, one)
    assert not asked  # the plain bound was enough
    errors.compare("keys", one * 1.015, one)
    errors.compare("values", one * 1.04, one)
    assert (len(asked), errors.widest) == (1, MOST)
    for what, found in (("the logits", 1.01), ("keys", 1.03), ("values", 1.06), ("values", np.inf)):
        with pytest.raises(ParityError, match=f"coreml disagrees with the reference engine in {what}"):
            errors.compare(what, one * np.float32(found), one)
