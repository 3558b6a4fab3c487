"""Files are cut so that what did not change is the same parts."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from update_bundles import contents, listed, old_bundle

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.update import cuts
from edgeloop.runtime.update.apply import apply_update
from edgeloop.runtime.update.diff import make_update


def with_file(folder: Path, data: bytes) -> Path:
    old_bundle(folder)
    (folder / "onnx" / "model.bin").write_bytes(data)
    return listed(folder)


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 40_000, 300_000])
def test_parts_are_the_file(tmp_path: Path, size: int) -> None:
    bundle = Bundle.open(with_file(tmp_path / "a", random.Random(size).randbytes(size)))
    for name, file in bundle.manifest.files.items():
        at = 0
        for start, length in cuts.cuts(bundle, name):
            assert start == at
            assert 0 < length <= cuts.MOST
            at += length
        assert at == file.bytes


def test_a_hash_is_that_of_the_last_bytes_alone() -> None:
    data = np.frombuffer(random.Random(1).randbytes(500), np.uint8)
    whole = cuts._hashes(data)
    for i in range(cuts.WINDOW - 1, len(data)):
        last = sum(int(cuts._GEAR[data[i - j]]) << j for j in range(cuts.WINDOW)) & 0xFFFFFFFF
        assert whole[i] == last
        assert cuts._hashes(data[i - cuts.WINDOW + 1 : i + 1])[-1] == last


def test_pieces_of_a_file_do_not_move_its_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(random.Random(2).randbytes(200_000))
    whole = list(cuts._content_edges(file))
    assert len(whole) > 20
    monkeypatch.setattr(cuts, "_PIECE", 1000)
    assert list(cuts._content_edges(file)) == whole


def test_what_is_put_into_an_opaque_file_costs_its_own_bytes(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(1_000_000)
    old = with_file(tmp_path / "old", data)
    new = with_file(tmp_path / "new", data[:400_000] + b"something" + data[400_000:])
    made = make_update(old, new, tmp_path / "update")
    assert made.changed["onnx/model.bin"][1] < 2 * cuts.MOST
    shutil.copytree(old, tmp_path / "bundle")
    apply_update(tmp_path / "bundle", tmp_path / "update")
    assert contents(tmp_path / "bundle") == contents(new)


def test_what_repeats_is_shipped_once(tmp_path: Path) -> None:
    data = random.Random(4).randbytes(5 << 20)  # more than a part may have
    old, new = with_file(tmp_path / "old", b""), with_file(tmp_path / "new", data)
    shutil.copyfile(new / "onnx" / "model.bin", new / "onnx" / "other.bin")
    made = make_update(old, listed(new), tmp_path / "update")
    assert made.bytes < len(data) + 20_000
    shutil.copytree(old, tmp_path / "bundle")
    apply_update(tmp_path / "bundle", tmp_path / "update")
    assert contents(tmp_path / "bundle") == contents(new)
