"""The table of engines and its errors."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from stored_bundle import FOLDER, logits

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines import table as backends
from edgeloop.runtime.errors import BundleError, EngineError, UsageError
from edgeloop.runtime.serve.serving import BatchServer

STORED = max(FOLDER.glob("format-*/"))


def test_reference_opens(maker, tmp_path):
    backend = backends.open_backend("reference", Bundle.open(maker.bundle(tmp_path / "b", maker.program())))
    assert backend.name == "reference"
    assert backend.program == maker.program()


def test_every_reason_not_to_open(maker, tmp_path, monkeypatch):
    bundle = Bundle.open(maker.bundle(tmp_path / "b", maker.program()))
    with pytest.raises(UsageError, match="unknown engine 'vulkan'; known: reference, onnx"):
        backends.open_backend("vulkan", bundle)
    with pytest.raises(UsageError, match="threads is 0"):
        backends.open_backend("onnx", bundle, threads=0)
    with pytest.raises(UsageError, match="engine onnx pins no threads; leave out --cpus"):
        backends.open_backend("onnx", bundle, cpus=[0])
    with pytest.raises(UsageError, match="a processor of cpus is -1"):
        backends.open_backend("onnx", bundle, cpus=[-1])
    bare = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, targets={}))
    with pytest.raises(BundleError, match="holds no onnx target.*--target onnx"):
        backends.open_backend("reference", bare)
    onnx = bundle.manifest.targets["onnx"]
    other = dataclasses.replace(
        bundle, manifest=msgspec.structs.replace(bundle.manifest, targets={"coreml": onnx})
    )
    monkeypatch.setitem(
        backends.ENGINES,
        "coreml",
        dataclasses.replace(backends.ENGINES["coreml"], unavailable_reason=lambda: "needs another computer"),
    )
    with pytest.raises(
        BundleError, match=r"only: coreml.*; choose --engine coreml-reference, or export with --target onnx"
    ):
        backends.open_backend("onnx", other)
    skipped_kv = dataclasses.replace(backends.ENGINES["onnx"], module="not_installed_here")
    monkeypatch.setitem(backends.ENGINES, "onnx", skipped_kv)
    with pytest.raises(EngineError, match=r'not installed: pip install "edgeloop\[onnx\]"'):
        backends.open_backend("onnx", bundle)
    versions = {s.name: s.version for s in backends.available()}
    assert (versions["reference"], versions["onnx"]) == (np.__version__, None)


@pytest.mark.parametrize("name", ["reference", "onnx"])
def test_an_engine_can_what_its_folder_says_and_closes_twice(maker, tmp_path, name):
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    bundle = Bundle.open(STORED)
    backend = backends.open_backend(name, bundle)
    assert backend.can is backends.ENGINES[name].can
    assert np.isfinite(logits(backend)).all()
    backend.close()
    backend.close()


def test_packed_lanes_are_refused_before_anything_is_loaded(maker, tmp_path, monkeypatch):
    bundle = maker.bundle(tmp_path / "b", maker.program())
    engine = backends.ENGINES["reference"]
    monkeypatch.setitem(
        backends.ENGINES,
        "reference",
        dataclasses.replace(engine, load=None, can=dataclasses.replace(engine.can, packed=False)),
    )
    with pytest.raises(
        UsageError,
        match="engine reference: it takes one lane at a time, and many users need packed lanes; use",
    ):
        BatchServer.open(bundle, engine="reference")
