"""Calibrated exits in a package's metadata, which is all that a Swift host reads."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_packages import package_of

from edgeloop.export.calibration.write import write_exits, write_probes
from edgeloop.export.targets.coreml.metadata import with_metadata
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import Exit
from edgeloop.runtime.engines.coreml.exits import EXITS
from edgeloop.runtime.engines.coreml.interpreter import MODEL, Interpreter, read_model
from edgeloop.runtime.errors import BundleError

RULE = Exit(
    thresholds=(0.75, 0.5),
    skipped_kv="propagate",
    goal="agreement 99%",
    tokens=100,
    perplexity=2.0,
    full_perplexity=2.0,
    agreement=0.99,
    mean_depth=1.5,
)


@pytest.fixture
def bundle(packaged: Callable[..., Bundle], tmp_path: Path) -> Path:
    """A bundle of one's own."""
    return Path(shutil.copytree(packaged("edgeloop").folder, tmp_path / "bundle"))


def said(folder: Path) -> Any:
    """The exits in the package, of a bundle whose hashes are right."""
    model = read_model(package_of(Bundle.open(folder)))
    return json.loads(model.description.metadata.userDefined[EXITS])


def test_thresholds_are_those_of_the_manifest(bundle: Path) -> None:
    before = read_model(package_of(Bundle.open(bundle)))
    assert said(bundle) == {"rules": {}, "heads": {}}
    write_exits(bundle, {"confidence": RULE, "latent": RULE})
    write_exits(bundle, {"latent": RULE})
    rule = {"thresholds": [0.75, 0.5], "missing": "propagate"}
    assert said(bundle) == {"rules": {"confidence": rule, "latent": rule}, "heads": {}}
    assert set(Bundle.open(bundle).manifest.exits) == {"confidence", "latent"}
    # Nothing but that text differs, and the package still runs.
    after = read_model(package_of(Bundle.open(bundle)))
    assert after != before
    for model in (before, after):
        del model.description.metadata.userDefined[EXITS]
    assert after == before
    assert not [path for path in bundle.iterdir() if path.name.startswith(".")]
    Interpreter(package_of(Bundle.open(bundle)), rounding=False)


def test_probes_come_with_their_numbers(bundle: Path) -> None:
    random = np.random.default_rng(0)
    width = Bundle.open(bundle).program.width
    weight, bias = random.standard_normal((2, width), np.float32), random.standard_normal(2, np.float32)
    write_exits(bundle, {"probe": RULE})
    write_probes(bundle, weight, bias)  # thresholds of other probes go
    assert said(bundle)["rules"] == {}
    write_exits(bundle, {"probe": RULE})
    found = said(bundle)
    assert found["rules"]["probe"]["thresholds"] == [0.75, 0.5]
    for name, wanted in (("probe.weight", weight), ("probe.bias", bias)):
        head = found["heads"][name]
        array = np.frombuffer(b64decode(head["data"]), "<f4").reshape(head["shape"])
        np.testing.assert_array_equal(array, wanted)


def test_a_gate_is_there_from_the_start(packaged: Callable[..., Bundle]) -> None:
    bundle = packaged("ouro")
    assert set(said(bundle.folder)["heads"]) == {"gate.weight", "gate.bias"}


@pytest.mark.parametrize("size", [0, 1, 100, -1, -100])
def test_a_model_that_is_not_whole_is_refused(bundle: Path, size: int) -> None:
    path = package_of(Bundle.open(bundle)) / MODEL
    with pytest.raises(BundleError, match="model.mlmodel cannot be read; export the checkpoint again"):
        with_metadata(path.read_bytes()[:size], {EXITS: "{}"})
