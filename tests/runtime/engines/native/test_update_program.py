"""Updates by the program that `make native-cross` runs for Windows: here with this computer's library, and by wine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import native_cross
import pytest
import update_program
from native_programs import Target, compiled, here

from edgeloop.apps.devices.cross import zig


@pytest.fixture
def ran(lane_engine: Path, tmp_path: Path) -> update_program.Run:
    """The program, with the library that is built here."""
    if here() is None:
        pytest.skip("no C++ compiler")
    link = (str(lane_engine), f"-Wl,-rpath,{lane_engine.parent}")
    program = compiled("update", tmp_path, link=link)

    def run(verb: str, *words: object) -> str:
        command = [program, verb, *map(str, words)]
        return subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout

    return run


def test_on_this_computer(ran: update_program.Run, tmp_path: Path) -> None:
    update_program.applied(ran, update_program.made(tmp_path / update_program.LONG))
    place = update_program.made(tmp_path / "updates")
    update_program.refused(ran, place)
    update_program.signed(ran, place)


def test_on_windows_under_wine(tmp_path: Path) -> None:
    """One update and its way back; `make native-cross` has the rest."""
    if not (compiler := zig()):
        pytest.skip("no zig (pip install ziglang)")
    if (wine := native_cross.wine_command()) is None:
        pytest.skip(f"no wine ({native_cross.PACKAGES})")
    windows = Target((*compiler, "c++", "-target", "x86_64-windows-gnu"), "win32", "x86_64")
    program = native_cross.program("update_whole", windows)
    run = native_cross.updates(wine, tmp_path / "wine", program)
    update_program.applied(run, update_program.made(tmp_path / update_program.LONG))
