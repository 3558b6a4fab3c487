"""The table of engines and its errors."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines import table as backends
from edgeloop.runtime.errors import BundleError, EngineError, UsageError


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
    bare = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, targets={}))
    with pytest.raises(BundleError, match="holds no onnx target.*--target onnx"):
        backends.open_backend("reference", bare)
    missing = dataclasses.replace(backends.ENGINES["onnx"], module="not_installed_here")
    monkeypatch.setitem(backends.ENGINES, "onnx", missing)
    with pytest.raises(EngineError, match=r'not installed: pip install "edgeloop\[onnx\]"'):
        backends.open_backend("onnx", bundle)
    versions = {s.name: s.version for s in backends.available()}
    assert (versions["reference"], versions["onnx"]) == (np.__version__, None)
