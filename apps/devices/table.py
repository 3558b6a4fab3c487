"""The kinds of devices by the word that their address begins with. A new kind is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from ...runtime.errors import UsageError
from .adb import AdbDevice
from .local import LocalDevice
from .shell import ShellDevice
from .ssh import SshDevice

KINDS: dict[str, Callable[[str], ShellDevice]] = {
    "ssh://": SshDevice,
    "adb:": AdbDevice,
    "local": LocalDevice,
}
FORMS = "ssh://user@board[:port], adb:SERIAL or local"


def open_device(text: str) -> ShellDevice:
    """Return the device that ``text`` names, which nothing is asked yet; UsageError where it names none."""
    for begins, kind in KINDS.items():
        if text.startswith(begins):
            return kind(text.removeprefix(begins))
    raise UsageError(f"{text!r} is no device to run on; wanted {FORMS}")
