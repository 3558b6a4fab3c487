"""What killed exports left is swept, and nothing else is removed, moved or waited for."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeloop.export.bundle import leftovers
from edgeloop.export.bundle.leftovers import AGE, MARK, hidden_folder, sweep, take


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder that is nobody's business."""
    folder = tmp_path / "precious"
    (folder / "old" / "thesis").mkdir(parents=True)
    (folder / "old" / "thesis" / "text").write_text("words")
    return folder


def test_a_killed_process_leaves_a_folder_that_goes(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from edgeloop.export.bundle.leftovers import hidden_folder
folder, handle = hidden_folder(Path(sys.argv[1]))
(folder / "new").mkdir()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert len(names(tmp_path)) == 1
    sweep(tmp_path)
    assert names(tmp_path) == set()


def test_a_folder_in_use_stays(tmp_path: Path) -> None:
    folder, handle = hidden_folder(tmp_path)
    sweep(tmp_path)
    assert folder.exists()
    assert handle is not None
    os.close(handle)
    sweep(tmp_path)
    assert not folder.exists()


def test_pipes_links_and_files_go_and_what_they_lead_to_stays(tmp_path: Path, precious: Path) -> None:
    os.mkfifo(tmp_path / f"{MARK}pipe")
    (tmp_path / f"{MARK}link").symlink_to(precious, target_is_directory=True)
    (tmp_path / f"{MARK}dangling").symlink_to("nowhere")
    (tmp_path / f"{MARK}file").write_text("x")
    inside = tmp_path / f"{MARK}folder"
    inside.mkdir()
    os.mkfifo(inside / "pipe")
    (inside / "link").symlink_to(precious, target_is_directory=True)
    (inside / "old").symlink_to(precious / "old", target_is_directory=True)
    (inside / "place").write_text(str(tmp_path / "thesis"))
    sweep(tmp_path)
    assert names(tmp_path) == {"precious"}
    assert (precious / "old" / "thesis" / "text").read_text() == "words"


@pytest.mark.parametrize(
    "place", [None, "", "thesis", "{}/other/thesis", "{}/taken", "{}/../thesis", "\0", "/" * 5000]
)
def test_only_what_an_export_moved_aside_is_put_back(tmp_path: Path, place: str | None) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "other").mkdir()
    folder = tmp_path / f"{MARK}x"
    (folder / "old").mkdir(parents=True)
    if place is not None:
        (folder / "place").write_text(place.format(tmp_path))
    try:
        sweep(tmp_path)
    finally:
        assert names(tmp_path) - {folder.name} == {"taken", "other"}
    assert names(tmp_path / "other") == names(tmp_path / "taken") == set()


def test_what_an_export_moved_aside_is_put_back(tmp_path: Path) -> None:
    folder = tmp_path / f"{MARK}x"
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "text").write_text("old")
    (folder / "place").write_text(str(tmp_path / "out"))
    sweep(tmp_path)
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "text").read_text() == "old"


def test_of_other_users_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{MARK}x").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / f"{MARK}x").stat().st_uid + 1)
    sweep(tmp_path)
    assert names(tmp_path) == {f"{MARK}x"}


@pytest.mark.parametrize("system", ["without fcntl", "without locks"])
def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    if system == "without fcntl":
        monkeypatch.setattr(leftovers, "LOCKS", None)
    else:

        def unsupported(handle: int, how: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", unsupported)
    folder, handle = hidden_folder(tmp_path)
    (folder / "new").mkdir()
    (folder / "new" / "weights").touch()
    assert handle is None
    sweep(tmp_path)
    assert folder.exists()
    long_ago = time.time() - AGE - 10
    for path in (folder / "new", folder):
        os.utime(path, (long_ago, long_ago))
    sweep(tmp_path)
    assert folder.exists()  # a file in it is being written
    os.utime(folder / "new" / "weights", (long_ago, long_ago))
    sweep(tmp_path)
    assert not folder.exists()


def test_who_sweeps_while_a_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its lock it looks abandoned: then another one is made."""
    locked, times = take, []

    def late(folder: Path) -> int | None:
        times.append(folder)
        if len(times) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(leftovers, "take", locked)
                sweep(tmp_path)
        return locked(folder)

    monkeypatch.setattr(leftovers, "take", late)
    folder, handle = hidden_folder(tmp_path)
    assert folder.exists()
    assert folder != times[0]
    assert handle is not None
    os.close(handle)
