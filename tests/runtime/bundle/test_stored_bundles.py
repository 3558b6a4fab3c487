"""A bundle that was exported once opens for as long as its format is read, and computes what it did."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mutants import mutants, transplants
from safetensors.numpy import load_file
from stored_bundle import FOLDER, logits

from edgeloop.runtime.audit import audit
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import FORMAT, MANIFEST
from edgeloop.runtime.engines.table import open_backend
from edgeloop.runtime.errors import BundleError, EdgeloopError
from edgeloop.runtime.version import VERSION

STORED = sorted(FOLDER.glob("format-*/"))


def test_there_is_one_of_this_format() -> None:
    assert FOLDER / f"format-{FORMAT}" in STORED


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
@pytest.mark.parametrize("engine", ["reference", "onnx"])
def test_it_gives_the_logits_that_it_gave(folder: Path, engine: str) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    bundle = Bundle.open(folder)
    found, wanted = (
        logits(open_backend(engine, bundle)),
        load_file(folder.with_suffix(".safetensors"))[engine],
    )
    # The graphs round the inputs of matrices to int8, now and then the other way than the model of them does.
    bound = 1e-5 if engine == "reference" else bundle.manifest.targets["onnx"].parity.bound
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_every_byte_of_it_is_known(folder: Path) -> None:
    assert audit(folder).findings == ()


@pytest.mark.parametrize("version", [3, FORMAT + 1])
def test_another_format_is_refused(version: int, tmp_path: Path) -> None:
    folder = shutil.copytree(STORED[-1], tmp_path / "bundle")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": version}))
    with pytest.raises(
        BundleError,
        match=rf"bundle format {version}, this edgeloop reads format {FORMAT} "
        rf"\(made by edgeloop [\d.]+, this is {re.escape(VERSION)}\); export the checkpoint again",
    ):
        Bundle.open(folder)


@pytest.mark.parametrize("engine", ["reference", "onnx"])
def test_a_bundle_whose_program_says_something_else(engine: str, tmp_path: Path) -> None:
    """Refused in a line, by its manifest, its weights or its graphs, or run: nothing else happens."""
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    folder = shutil.copytree(STORED[-1], tmp_path / "bundle")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    changes = list(mutants(manifest["program"]))[::3]
    ran, told = 0, list[str]()
    for holder, key, value in [*changes, *transplants(changes, 100)]:
        usual, holder[key] = holder[key], value
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        holder[key] = usual
        try:
            bundle = Bundle.open(folder, verify=False)
            with np.errstate(all="ignore"):
                logits(open_backend(engine, bundle))
            ran += 1
        except EdgeloopError as error:
            told.append(str(error))
    assert len(told) > ran > 0
    assert not any("\n" in line for line in told)
