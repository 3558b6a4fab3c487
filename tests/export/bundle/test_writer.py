"""A bundle appears whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeloop.export.bundle.writer import check_free, describe_files, new_folder
from edgeloop.runtime.errors import ExportError, UsageError

NEW, OLD = {"text": "new", "manifest.json": '{"edgeloop": "1", "files": {"text": {}}}'}, "old"


def fill(folder: Path, text: str = "new") -> None:
    for name, content in {**NEW, "text": text}.items():
        (folder / name).write_text(content)


def bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    fill(folder, OLD)
    return folder


def write(out: Path, force: bool, meanwhile: Callable[[], object] = lambda: None) -> None:
    with new_folder(out, force) as folder:
        fill(folder)
        meanwhile()


def fails(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "missing" / "parents" / "out"
    with new_folder(out, force=False) as folder:
        fill(folder)
        assert not out.exists()
        assert folder.parent.parent == out.parent
    assert names(out) == set(NEW)
    assert names(out.parent) == {"out"}


def test_not_inside_another_bundle(tmp_path: Path) -> None:
    outer = bundle(tmp_path / "outer")
    for out in (outer / "inner", outer / "deep" / "inner"):
        with pytest.raises(UsageError, match="would be inside the bundle .*outer, which lists its files"):
            check_free(out, force=True)
    check_free(outer, force=True)


def test_rights_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "out", force=False) as folder:
            fill(folder)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write(tmp_path / "out", False, fails(error))
    assert names(tmp_path) == set()


def test_an_error_leaves_the_old_bundle(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    with pytest.raises(ValueError, match="x"):
        write(out, True, fails(ValueError("x")))
    assert (out / "text").read_text() == OLD
    assert names(tmp_path) == {"out"}


def test_force_replaces_a_bundle(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    with pytest.raises(UsageError, match="exists: choose another folder or pass --force"):
        check_free(out, force=False)
    with new_folder(out, force=True) as folder:
        fill(folder)
        assert (out / "text").read_text() == OLD
    assert (out / "text").read_text() == "new"
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize(
    "manifest",
    [None, "", "[]", "{}", '{"name": "a web app", "icons": []}', '{"edgeloop": "1"}', "\xff", "[" * 100_000],
)
def test_force_replaces_nothing_else(tmp_path: Path, manifest: str | None) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("words")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(UsageError, match="is not a bundle: --force replaces bundles only"):
        check_free(out, force=True)
    with pytest.raises(UsageError):
        write(out, True, fails(AssertionError("not reached")))
    assert (out / "thesis.txt").read_text() == "words"


def test_force_does_not_delete_what_others_put_into_a_bundle(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    (out / "notes").mkdir()
    (out / "notes" / "thesis.txt").write_text("words")
    with pytest.raises(UsageError, match=r"holds notes/thesis\.txt, which is no part of the bundle"):
        check_free(out, force=True)


def test_a_file_and_an_empty_folder_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        for force in (False, True):
            with pytest.raises(UsageError, match="exists"):
                check_free(tmp_path / name, force)


def test_a_bundle_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="exists"):
        write(out, False, lambda: bundle(out))
    assert (out / "text").read_text() == OLD
    assert names(tmp_path) == {"out"}


def test_links_are_followed(tmp_path: Path) -> None:
    real = bundle(tmp_path / "disk" / "real")
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "later")
    for name in ("link", "dangling"):
        write(tmp_path / name, True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert {n: (tmp_path / "disk" / n / "text").read_text() for n in ("real", "later")} == {
        "real": "new",
        "later": "new",
    }
    assert names(tmp_path / "disk") == {"real", "later"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/out", "File exists|Not a directory"),
        ("file/deeper/out", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("loop/out", "symbolic links|File exists"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("words")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ExportError, match=f"cannot write .*({reason})"):
        write(tmp_path / name, True, fails(AssertionError("not reached")))
    assert names(tmp_path) == {"file", "loop"}


def test_a_full_disk_when_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="No space left on device"):
        write(tmp_path / "out", False)
    assert names(tmp_path) == set()


def test_exports_side_by_side_leave_each_other_alone(tmp_path: Path) -> None:
    write(tmp_path / "a", False, lambda: write(tmp_path / "b", False))
    assert names(tmp_path) == {"a", "b"}


def test_a_manifest_that_is_a_pipe_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "manifest.json")
    with pytest.raises(UsageError, match="is not a bundle"):
        check_free(tmp_path / "out", force=True)


def test_a_link_to_a_folder_is_no_part_of_a_bundle(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    (out / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UsageError, match="holds more, which is no part of the bundle"):
        check_free(out, force=True)


def test_files_are_described(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "b").write_bytes(b"12345")
    (tmp_path / "a").write_bytes(b"")
    found = describe_files(tmp_path)
    assert list(found) == ["a", "onnx/b"]
    assert found["onnx/b"].bytes == 5
    assert found["onnx/b"].sha256 == hashlib.sha256(b"12345").hexdigest()
