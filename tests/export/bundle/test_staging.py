"""A process may be killed at any step: what is under the name is whole, old or new, and what is left is swept."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from edgeloop.export.bundle import staging
from edgeloop.export.bundle.staging import staged
from edgeloop.runtime.bundle.exchange import exchange
from edgeloop.runtime.errors import ExportError

TESTS = Path(__file__).parents[2]


def killed(scenario: str, folder: Path, *words: str) -> list[str]:
    """What was there after a kill at each step, equal ones in a row once."""
    command = [sys.executable, str(TESTS / "killing.py"), scenario, str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 10
    return [state for state, _ in groupby(found)]


def can_exchange(folder: Path) -> bool:
    for name in ("one", "other"):
        (folder / name).mkdir()
    return exchange(folder / "one", folder / "other")


def test_exchange(tmp_path: Path) -> None:
    if not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange names")
    (tmp_path / "one" / "a").touch()
    assert exchange(tmp_path / "one", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["a"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "absent")


def test_an_export_killed_at_every_step(tmp_path: Path) -> None:
    if not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange names")
    assert killed("killed_export", tmp_path / "work") == ["old old", "new new"]


def test_an_export_killed_at_every_step_where_names_cannot_be_exchanged(tmp_path: Path) -> None:
    """Between two renames there is nothing, until the next export beside it."""
    found = killed("killed_export", tmp_path / "work", "no-exchange")
    assert found == ["old old", "nothing old", "new new"]


def test_a_calibration_killed_at_every_step(tmp_path: Path) -> None:
    if not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange names")
    assert killed("killed_calibration", tmp_path / "work") == ["old", "probes", "calibrated"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_failing_step_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "text").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    def cannot(one: Path, other: Path) -> bool:
        if exchanges:
            raise OSError(errno.EIO, "Input/output error")
        return False

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr(staging, "exchange", cannot)
    with pytest.raises(ExportError, match="cannot write .*Input/output error"), staged(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "text").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
