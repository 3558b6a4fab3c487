"""Exported bundles read the files that their manifest lists, and none beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from editing import relist
from msgspec import structs
from onnx.external_data_helper import set_external_data
from tiny import altered

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.bundle.folder import Bundle, sha256_of
from edgeloop.runtime.bundle.manifest import read_manifest, write_manifest
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.table import open_backend
from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.session import Session


@pytest.fixture
def folder(exported: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported("edgeloop", "int4"), tmp_path / "bundle"))


def move_weights(folder: Path, graph: str, location: str) -> None:
    """One initializer of ``graph`` is in another file than the listed weights."""
    path = folder / "onnx" / graph
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    place = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
    tensor.raw_data = b""  # what set_external_data asks for
    set_external_data(tensor, location, **place)
    path.write_bytes(model.SerializeToString())
    relist(folder, f"onnx/{graph}")


@pytest.mark.parametrize("graph", ["prologue.onnx", "block.onnx", "epilogue.onnx", "fill.onnx"])
def test_weights_in_a_file_that_is_not_listed_are_refused(folder: Path, graph: str) -> None:
    shutil.copyfile(folder / "onnx" / "weights.safetensors", folder / "onnx" / "other.bin")
    move_weights(folder, graph, "other.bin")
    with pytest.raises(
        BundleError, match=rf"onnx/{graph} has .* in 'other\.bin', wanted everything in onnx/w"
    ):
        Session.open(folder)


@pytest.mark.parametrize("location", ["../onnx/weights.safetensors", "/etc/hostname", "block.onnx", ""])
def test_weights_under_other_names_are_refused(folder: Path, location: str) -> None:
    move_weights(folder, "block.onnx", location)
    with pytest.raises(BundleError, match="wanted everything in onnx/weights.safetensors"):
        Session.open(folder)


@pytest.mark.parametrize(
    ("operator", "domain", "told"),
    [
        ("If", "", "'If'"),
        ("Add", "ai.onnx", r"'ai\.onnx\.Add'"),
        ("MatMulNBits", "other", r"'other\.MatMulNBits'"),
        ("ReadFile", "com.microsoft", r"'com\.microsoft\.ReadFile'"),
    ],
)
def test_operators_that_no_export_writes_are_refused(
    folder: Path, operator: str, domain: str, told: str
) -> None:
    path = folder / "onnx" / "block.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node.append(onnx.helper.make_node(operator, ["state"], ["more"], domain=domain))
    path.write_bytes(model.SerializeToString())
    relist(folder, "onnx/block.onnx")
    with pytest.raises(BundleError, match=rf"onnx/block\.onnx has the operator {told}, wanted only those"):
        Session.open(folder)


def test_functions_are_refused(folder: Path) -> None:
    path = folder / "onnx" / "block.onnx"
    model = onnx.load(path, load_external_data=False)
    model.functions.add(name="Add", domain="")
    path.write_bytes(model.SerializeToString())
    relist(folder, "onnx/block.onnx")
    with pytest.raises(BundleError, match=r"has the operator 'function\.Add'"):
        Session.open(folder)


def test_a_graph_in_onnxruntimes_own_format_is_refused(folder: Path) -> None:
    (folder / "onnx" / "block.onnx").write_bytes(b"\x20\x00\x00\x00ORTM" * 100)
    relist(folder, "onnx/block.onnx")
    with pytest.raises(BundleError, match="block.onnx is no ONNX graph"):
        Session.open(folder)


def test_a_bundle_in_the_hugging_face_cache_runs(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--model"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        blob = repository / "blobs" / sha256_of(path)
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    with Session.open(folder) as plain, Session.open(snapshot) as linked:
        assert np.array_equal(plain.logits([1, 2, 3]), linked.logits([1, 2, 3]))


@pytest.mark.parametrize("path", ["../../outside.mlpackage", "/tmp", "", "coreml", "coreml/other.mlpackage"])
def test_a_package_outside_of_the_bundle_is_refused(
    packaged: Callable[..., Bundle], tmp_path: Path, path: str
) -> None:
    pytest.importorskip("coremltools")
    folder = tmp_path / "bundle"
    bundle = packaged("edgeloop")
    shutil.copytree(bundle.folder, folder)
    shutil.copytree(folder / "coreml" / "model.mlpackage", tmp_path / "outside.mlpackage")
    (folder / "coreml" / "other.mlpackage").symlink_to(tmp_path / "outside.mlpackage")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["targets"]["coreml"]["details"]["path"] = path
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="no file of .* is listed|is not listed"):
        Session.open(folder, engine="coreml-reference")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": 32}, "prologue.onnx is of another model than the manifest describes: state is"),
        ({"kv_heads": 4}, "past.0.key is"),
        ({"heads": 8, "head_dim": 8}, "past.0.key is"),
        (
            {"vocab_size": 100},
            r"epilogue.onnx is of another model .*: logits is \['N', 320\], wanted \['\*', 100\]",
        ),
        ({"segments": (Segment(1), Segment(2, 3), Segment(2))}, "past.1.key is None"),
        ({"segments": (Segment(1), Segment(1, 3), Segment(1))}, "past.1.key is .*, wanted None"),
    ],
)
def test_graphs_of_another_model_are_refused(folder: Path, change: dict[str, object], told: str) -> None:
    manifest = read_manifest(folder)
    program = altered(manifest.program, **change)
    write_manifest(folder, structs.replace(manifest, program=program))
    with pytest.raises(BundleError, match=told):
        Session.open(folder)


def test_a_fill_graph_of_another_model_is_refused(folder: Path) -> None:
    """It is opened when the first token leaves early."""
    shutil.copyfile(folder / "onnx/epilogue.onnx", folder / "onnx/fill.onnx")
    relist(folder, "onnx/fill.onnx")
    bundle = Bundle.open(folder)
    backend = open_backend("onnx", bundle)
    lanes = Lanes(
        np.zeros(1, np.int64), np.zeros(1, np.int32), np.ones(1, np.int32), np.zeros((1, 1), np.int64)
    )
    state = np.zeros((1, 1, bundle.program.width), np.float32)
    with pytest.raises(BundleError, match=r"fill.onnx is of another model .*: past.0.key is"):
        backend.fill(state, lanes, backend.new_cache(1, 4))
