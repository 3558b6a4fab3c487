"""A phone over the command adb, of Android's platform tools. Never tried on a phone: see docs/boards.md.

What goes there is linked statically, and lies in /data/local/tmp, the one folder from which adb may run programs.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from .device import DeviceError, Load, shortest
from .shell import ShellDevice, ShellFolder

SERIAL = re.compile(r"[A-Za-z0-9][\w.:-]{0,63}")
OWN = re.compile(r"^(?:adb|error): ", re.MULTILINE)
"""How what adb says of itself begins."""
ADVICE = (
    ("unauthorized", "allow this computer in the dialog on its screen"),
    ("offline", "plug it in again"),
    ("found", "`adb devices` lists those that are there"),
    ("", "`adb devices` says whether it is there"),
)


class AdbDevice(ShellDevice):
    """A phone that adb reaches."""

    places = ("/data/local/tmp",)
    hosts = ("native",)

    def __init__(self, serial: str) -> None:
        """DeviceError where ``serial`` can be none."""
        if not SERIAL.fullmatch(serial):
            raise DeviceError(
                f"{serial!r} is no serial number of a phone; `adb devices` lists them: adb:SERIAL"
            )
        self.serial = serial
        super().__init__(f"phone {serial}")

    def command(self, script: str) -> list[str]:
        """Return the adb command that runs ``script``."""
        return ["adb", "-s", self.serial, "shell", script]

    def described(self, said: str, code: int) -> DeviceError | None:
        """What adb itself says begins with its name."""
        if not OWN.search(said):
            return None
        advice = next(advice for words, advice in ADVICE if words in said.lower())
        return DeviceError(f"{self.name} cannot be used: {shortest(said)}; {advice}")

    @contextmanager
    def folder(self, need: int) -> Iterator[AdbFolder]:
        """As that of every device, but that files come there by adb push."""
        with super().folder(need) as folder:
            yield AdbFolder(self, folder.path)

    def adb(self, *words: str) -> None:
        """Run a command of adb's own; DeviceError where it fails."""
        done = subprocess.run(
            ["adb", "-s", self.serial, *words],
            stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise self.failure((done.stderr or done.stdout).decode(errors="replace"), done.returncode)


class AdbFolder(ShellFolder):
    """A folder that adb pushes to."""

    device: AdbDevice

    def send(self, load: Load) -> None:
        """Copy files there, one by one."""
        folders = sorted({str(PurePosixPath(name).parent) for name in load.files})
        self.ask(f"mkdir -p {shlex.join(folders)}")
        for name, path in load.files.items():
            self.device.adb("push", str(path), f"{self.path}/{name}")
        if programs := sorted(load.executable & load.files.keys()):
            self.ask(f"chmod 755 {shlex.join(programs)}")

    def pull(self, name: str, goal: Path) -> None:
        """Copy a file of the folder to ``goal``, which is whole or not there."""
        fresh = goal.with_name(f".{goal.name}.new")
        try:
            self.device.adb("pull", f"{self.path}/{Load.checked(name)}", str(fresh))
            fresh.replace(goal)
        finally:
            fresh.unlink(missing_ok=True)
