"""The lane engine for other systems, compiled elsewhere: .venv/bin/python tests/native_cross.py.

``make native-cross`` calls this. The compiler is zig's clang: ``ZIG`` names it, else it is that of the package ziglang.
edgeloop-run for Linux, with musl, must be small; ``test_run_arm64.py`` runs it. What is for Windows is run where there
is wine: the kernels' tests, whole models, whose logits must have the bits that they have here, and updates, killed at
each of their steps. Nothing runs what is for macOS.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import update_program
from arm64 import IDS, STEPS, bits, own_model
from native_programs import Target, compiled, lanes_files

from edgeloop.apps.devices.cross import zig

log = logging.getLogger("native_cross")
ROOT = Path(__file__).resolve().parents[1]
OBJECTS = ROOT / "build" / "cross"
PACKAGES = "apt install wine64"
WINES = "/usr/lib/wine"
"""Where Debian's wine64 has it, which only another package puts into PATH."""
KILLED = 137
"""The exit status of a program that ended itself at a step."""
TABLES = "portable,best"
"""Of kernels: what every processor runs, and what the library chooses on this one."""
MOST_BYTES = 1_000_000
"""Of edgeloop-run, with all kernels and the C library."""


def folder(target: Target) -> Path:
    """Where the objects for ``target`` are kept."""
    found = OBJECTS / f"{target.system}-{target.machine}"
    found.mkdir(parents=True, exist_ok=True)
    return found


def library(target: Target) -> None:
    """Compile the library for ``target``."""
    from build import NAMES, build

    made = folder(target) / NAMES[target.system]
    build(made, folder(target), target)
    log.info("%s: %d kB", made.relative_to(ROOT), made.stat().st_size // 1000)


def whole_host(machine: str, compiler: tuple[str, ...]) -> Path:
    """edgeloop-run for Linux on ``machine``, compiled with all that it needs; AssertionError where it is too large."""
    from edgeloop.runtime.engines.native.programs import HOST, host

    target = Target((*compiler, "-target", f"{machine}-linux-musl"), "linux", machine)
    made = host(folder(target) / HOST, target, objects=folder(target))
    size = made.stat().st_size
    log.info("%s: %d bytes", made.relative_to(ROOT), size)
    if size >= MOST_BYTES:
        raise AssertionError(f"edgeloop-run for {machine} has {size} bytes, wanted less than {MOST_BYTES}")
    return made


def program(name: str, target: Target) -> Path:
    """The program ``name`` for Windows, by a name that Windows takes for a program's."""
    made = compiled(name, folder(target), target=target)
    goal = folder(target) / f"{name}.exe"
    if made.is_file():
        made.replace(goal)
    return goal


def wine_command() -> str | None:
    """Wine's command; None where there is none."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), WINES))
    return shutil.which("wine64", path=path) or shutil.which("wine")


def run(wine: str, prefix: Path, command: Path, *words: str, **given: str) -> str:
    """What a program for Windows prints; AssertionError with it where it fails.

    ``given`` is in its environment; nothing is printed where it was killed by that.
    """
    environment = {**os.environ, "WINEPREFIX": str(prefix), "WINEDEBUG": "-all", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [wine, str(command), *words],
        env=environment | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        timeout=900,
    )
    if given and done.returncode == KILLED:
        return ""
    if done.returncode:
        raise AssertionError(f"{command.name} failed on Windows:\n{done.stdout}")
    return done.stdout


def main() -> int:
    """Compile for both, and run what can be; exit status 1 after the first that does not hold."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if not (found := zig()):
        log.info("native-cross is skipped: no zig (pip install ziglang, or ZIG=zig)")
        return 0
    compiler = (*found, "c++")
    try:
        for machine in ("x86_64", "aarch64"):
            whole_host(machine, compiler)
    except AssertionError as error:
        log.error("%s", error)
        return 1
    windows = Target((*compiler, "-target", "x86_64-windows-gnu"), "win32", "x86_64")
    library(windows)
    if (found_wine := wine_command()) is None:
        log.info("nothing is run: no wine (%s)", PACKAGES)
    else:
        try:
            run_all(found_wine, windows)
        except AssertionError as error:
            log.error("%s", error)
            return 1
    library(Target((*compiler, "-target", "aarch64-macos"), "darwin", "arm64"))
    return 0


def run_all(wine: str, windows: Target) -> None:
    """Run the kernels' tests and the tests' models; AssertionError where something does not hold."""
    with tempfile.TemporaryDirectory(prefix="edgeloop-cross-", ignore_cleanup_errors=True) as name:
        prefix = Path(name) / "wine"
        log.info("%s", run(wine, prefix, program("kernels", windows)).rstrip())
        own, model = own_model(Path(name)), program("model_whole", windows)
        for file in lanes_files(Path(name) / "programs"):
            compare(file, own, run(wine, prefix, model, TABLES, STEPS, str(file), *IDS))
            log.info("%s: the bits of %s", file.name, sys.platform)
        check_updates(updates(wine, prefix, program("update_whole", windows)), Path(name) / "updates")


def updates(wine: str, prefix: Path, command: Path) -> update_program.Run:
    """The program of updates, whose paths become those that wine has here."""

    def updated(verb: str, *words: object, **given: object) -> str:
        here = (f"Z:{word}" if isinstance(word, Path) else str(word) for word in words)
        return run(wine, prefix, command, verb, *here, **{name: str(value) for name, value in given.items()})

    return updated


def check_updates(updated: update_program.Run, folder: Path) -> None:
    """Update the tests' bundles below ``folder``; AssertionError where something does not hold."""
    update_program.applied(updated, update_program.made(folder / update_program.LONG))
    place = update_program.made(folder / "short")
    update_program.refused(updated, place)
    update_program.signed(updated, place)
    log.info("updates: killed at each of %d steps", update_program.killed(updated, place))
    update_program.held(updated, update_program.made(folder / "held"))
    update_program.one_name(updated, update_program.made(folder / "one"))


def compare(file: Path, own: Path, printed: str) -> None:
    """AssertionError where the model in ``file`` has other bits here than ``printed``."""
    here = subprocess.run(
        [own, "portable", STEPS, file, *IDS], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    wanted, tables = bits(here)["portable"], bits(printed)
    assert "portable" in tables
    for table, found in tables.items():
        if found != wanted:
            raise AssertionError(
                f"{file}: {table} on Windows gives {sorted(found)}, portable here {sorted(wanted)}"
            )


if __name__ == "__main__":
    sys.exit(main())
