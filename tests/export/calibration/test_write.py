"""Changing a bundle: the old one is untouched until the new one has its place, and what others put there stays."""

from __future__ import annotations

import os
from pathlib import Path

import killed_calibration
import numpy as np
import pytest
from killed_calibration import MODEL, RULE, WEIGHTS, prepare

from edgeloop.export.bundle.writer import edited, put
from edgeloop.export.calibration.write import write_exits
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import MANIFEST
from edgeloop.runtime.errors import BundleError, ExportError, UsageError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    prepare(tmp_path / "work")
    return tmp_path / "work" / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_probes_and_rules_land_in_the_manifest_and_the_package(bundle: Path) -> None:
    killed_calibration.action(bundle.parent)
    assert killed_calibration.state(bundle.parent) == "calibrated"
    assert Bundle.open(bundle).manifest.exits == {"probe": RULE}


def edit_and_raise(bundle: Path, error: BaseException) -> None:
    with edited(bundle) as folder:
        put(folder / WEIGHTS, b"changed")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x")])
def test_whatever_ends_an_edit_leaves_the_old_bundle(bundle: Path, error: BaseException) -> None:
    before = contents(bundle)
    with pytest.raises(type(error)):
        edit_and_raise(bundle, error)
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["out"]


def test_files_that_did_not_change_are_not_copied(bundle: Path) -> None:
    before = (bundle / WEIGHTS).stat()
    write_exits(bundle, {"probe": RULE})
    after = (bundle / WEIGHTS).stat()
    if before.st_dev == after.st_dev and hasattr(os, "link"):
        assert before.st_ino == after.st_ino


def test_what_others_put_into_a_bundle_stays(bundle: Path) -> None:
    (bundle / "notes").mkdir()
    (bundle / "notes" / "thesis.txt").write_text("words")
    write_exits(bundle, {"probe": RULE})
    assert (bundle / "notes" / "thesis.txt").read_text() == "words"


def test_what_is_neither_file_nor_folder_is_named(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe")
    with pytest.raises(ExportError, match="pipe is neither a file nor a folder"):
        write_exits(bundle, {"probe": RULE})
    assert "probe" not in Bundle.open(bundle).manifest.exits


def test_a_damaged_bundle_is_not_changed(bundle: Path) -> None:
    (bundle / MODEL).write_bytes(b"damaged")
    before = contents(bundle)
    with pytest.raises(BundleError, match="the manifest says"):
        write_exits(bundle, {"probe": RULE})
    assert contents(bundle) == before


def test_two_edits_at_once(bundle: Path) -> None:
    with pytest.raises(ExportError, match="changed by another command meanwhile"), edited(bundle):
        write_exits(bundle, {"probe": RULE})
    assert Bundle.open(bundle).manifest.exits == {"probe": RULE}


def test_from_inside_of_the_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that stands there would stand in a folder that is gone."""
    monkeypatch.chdir(bundle / "coreml")
    with pytest.raises(UsageError, match="was started inside it; start it elsewhere"):
        write_exits(Path(".."), {"probe": RULE})


def test_a_link_to_a_bundle_stays_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    write_exits(tmp_path / "link", {"probe": RULE})
    assert (tmp_path / "link").is_symlink()
    assert Bundle.open(bundle).manifest.exits == {"probe": RULE}


def test_a_bundle_in_the_hugging_face_cache(bundle: Path, tmp_path: Path) -> None:
    """Its links become the files themselves; the cache's own copies stay as they are."""
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    for name, data in contents(bundle).items():
        blob = repository / "blobs" / name.replace("/", "_")
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    before = contents(repository / "blobs")
    write_exits(snapshot, {"probe": RULE})
    assert Bundle.open(snapshot).manifest.exits == {"probe": RULE}
    assert contents(repository / "blobs") == before
    assert (snapshot / MANIFEST).read_bytes() != before[MANIFEST]
    assert np.array_equal(list((snapshot / WEIGHTS).read_bytes()), list(before[WEIGHTS.replace("/", "_")]))
