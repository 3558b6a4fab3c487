"""Files of arrays: whole or not at all, in the format of safetensors, and refused in a line when they are damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeloop.runtime.context.arrays_file import ArraysWriter, reading, writing
from edgeloop.runtime.errors import SessionError

ARRAYS = {
    "ids": np.arange(7, dtype=np.int32),
    "rows": np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32),
    "none": np.empty((0, 4), np.float32),
    "half": np.linspace(0, 1, 6, dtype=np.float16).reshape(2, 3),
}
TYPES = {"int32": "I32", "float32": "F32", "float16": "F16"}


def write(path, arrays=ARRAYS, text=b'{"a": "\xc3\xa4"}'):
    shapes = {name: (TYPES[array.dtype.name], array.shape) for name, array in arrays.items()}
    with writing(path) as file:
        out = ArraysWriter(file, text, shapes)
        for array in arrays.values():
            out.put(array)
        out.finish()


def read(path):
    with reading(path) as reader:
        arrays = {name: reader.take() for name in reader.shapes}
        reader.finish()
        return reader.text, arrays


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "a.session"
    write(path)
    text, arrays = read(path)
    assert text == b'{"a": "\xc3\xa4"}'
    for found in (arrays, load_file(path)):  # and by everybody else
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["a.session"]


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.session"
    write(path, text=b"old")
    before = path.read_bytes()

    def stopped():
        with writing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.session"]


def test_places_that_cannot_be_written_or_read(tmp_path):
    with pytest.raises(SessionError, match=r"cannot write .*No such file"):
        write(tmp_path / "nowhere" / "a.session")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SessionError, match="cannot write"):
        write(tmp_path / "folder")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(SessionError, match="is no plain file"):
        read(tmp_path / "folder")
    with pytest.raises(SessionError, match=r"cannot read .*No such file"):
        read(tmp_path / "nothing")


def refused(path, data):
    path.write_bytes(data)
    with pytest.raises(SessionError) as found:
        read(path)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_every_cut_is_refused(tmp_path):
    path = tmp_path / "a.session"
    write(path)
    data = path.read_bytes()
    for length in range(0, len(data), 3):
        refused(path, data[:length])
    refused(path, data + b"\0")


def test_every_bit_counts(tmp_path):
    """Turned bits by lot, in the header and in the arrays: none is read as if it were what was written."""
    path = tmp_path / "a.session"
    write(path)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for at in (*range(16), *random.integers(0, len(data), 300).tolist()):
        turned = bytearray(data)
        turned[at] ^= 1 << int(random.integers(8))
        refused(path, bytes(turned))


def header(changes, size=0):
    entries = {
        "__metadata__": {"edgeloop.session": "{}"},
        "ids": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]},
        "sha256": {"dtype": "U8", "shape": [32], "data_offsets": [8, 40]},
        **changes,
    }
    packed = json.dumps({k: v for k, v in entries.items() if v is not None}).encode()
    return len(packed).to_bytes(8, "little") + packed + bytes(size or 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "its SHA-256 is another one"),
        ({"__metadata__": None}, "it is not a saved session"),
        ({"__metadata__": {"format": "pt"}}, "it is not a saved session"),
        ({"__metadata__": {"edgeloop.session": 7}}, "its header cannot be read"),
        ({"ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, "ids does not follow"),
        ({"ids": {"dtype": "I32", "shape": [-2], "data_offsets": [0, 8]}}, "ids does not follow"),
        ({"ids": {"dtype": "I32", "shape": [2], "data_offsets": [1, 9]}}, "ids does not follow"),
        ({"ids": {"dtype": "I32", "shape": [3], "data_offsets": [0, 8]}}, "ids has another size"),
        (
            {"ids": {"dtype": "I32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}},
            "ids has another size",
        ),
        (
            {"ids": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8], "x": 1}},
            "its header cannot be read",
        ),
        ({"ids": []}, "its header cannot be read"),
        ({"sha256": None}, "it has"),
        ({"sha256": {"dtype": "F32", "shape": [8], "data_offsets": [8, 40]}}, "it has"),
    ],
)
def test_headers_that_describe_something_else(tmp_path, changes, message):
    assert message in refused(tmp_path / "a.session", header(changes))


def test_no_more_is_read_than_there_is(tmp_path):
    """Sizes that a file claims are compared with its own before anything is made for them."""
    path = tmp_path / "a.session"
    for claimed, message in (
        (1 << 20, "it ends too early"),
        (1 << 40, "it is not a saved session"),
        ((1 << 64) - 1, "it is not a saved session"),
    ):
        assert message in refused(path, claimed.to_bytes(8, "little") + b"{}")
    assert "its header cannot be read" in refused(path, (1 << 16).to_bytes(8, "little") + b"[" * (1 << 16))
    large = {"rows": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [8, 8 + (1 << 42)]}, "sha256": None}
    assert "rows has another size" in refused(path, header(large))
