"""This computer as a device: what a board would be asked for, in a folder of its own here."""

from __future__ import annotations

from .device import DeviceError
from .shell import ShellDevice


class LocalDevice(ShellDevice):
    """The shell of this computer."""

    def __init__(self, rest: str = "") -> None:
        """DeviceError where ``rest``, which stands behind ``local``, is not empty."""
        super().__init__("this computer")
        if rest:
            raise DeviceError(f"local takes nothing behind it, not {rest!r}")

    def command(self, script: str) -> list[str]:
        """Return the command that runs ``script``."""
        return ["sh", "-c", script]
