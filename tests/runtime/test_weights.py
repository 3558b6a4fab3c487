"""Stored tensors of somebody else: damaged, of other types, or not finite."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeloop.runtime.bundle.heads import check_heads
from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.model.stored import StoredWeights, read_tensors


def write(path, header, data=bytes(8)):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, *[1] * 70], "data_offsets": [0, 8]},
        1,
    ],
)
def test_a_header_that_cannot_be_meant(tmp_path, entry):
    with pytest.raises(BundleError, match="x.safetensors: .*copy the bundle again"):
        read_tensors(write(tmp_path / "x.safetensors", {"a": entry}))


@pytest.mark.parametrize("data", [b"", b"\x00" * 4, (2**63).to_bytes(8, "little"), b"[" * 4096])
def test_what_is_no_safetensors_file(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match="x.safetensors"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("norm.weight", np.int64),
        ("embed.codes", np.int8),
        ("embed.scales", np.uint16),
        ("norm.weight", np.bool_),
    ],
)
def test_other_types_than_the_format_has(maker, name, kind):
    program = maker.program()
    tensors = maker.tensors(program, 4)
    tensors[name] = tensors[name].astype(kind)
    with pytest.raises(BundleError, match=rf"{name} is {np.dtype(kind).name}, wanted"):
        StoredWeights(program.weights, tensors, 8)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E8M0"])
def test_types_that_numpy_has_only_with_other_packages(maker, tmp_path, dtype):
    program = maker.program()
    size = {"BF16": 2}.get(dtype, 1) * program.width
    entry = {"dtype": dtype, "shape": [program.width], "data_offsets": [0, size]}
    path = write(tmp_path / "x.safetensors", {"norm.weight": entry}, bytes(size))
    with pytest.raises(BundleError, match="norm.weight is |x.safetensors: "):
        StoredWeights(program.weights, {**maker.tensors(program), **read_tensors(path)}, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "bundle: there is no head gate.weight, wanted 2; export the checkpoint again"),
        (
            {"gate.weight": np.zeros((3, 2))},
            "bundle: head gate.weight is 3×2, wanted 2; export the checkpoint again",
        ),
    ],
)
def test_a_head_that_is_missing_or_of_another_shape(given, said):
    with pytest.raises(BundleError) as told:
        check_heads(given, {"gate.weight": (2,)}, "bundle")
    assert str(told.value) == said


def test_heads_are_finite_floats():
    wanted = {"gate.weight": (2,)}
    for value in (np.array([1, 2]), np.array([1.0, np.nan]), np.array([np.inf, 0.0])):
        with pytest.raises(BundleError, match="head gate.weight is not finite floats"):
            check_heads({"gate.weight": value}, wanted, "bundle")
