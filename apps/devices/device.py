"""What is known of a device, and what goes there; ``shell.py`` has what is done with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...runtime.errors import EdgeloopError


class DeviceError(EdgeloopError):
    """A device that cannot be reached, lacks room, tools or the right processor, or failed at what it was asked."""


@dataclass(frozen=True)
class Place:
    """A folder there that can be written to, and the bytes that are free."""

    path: str
    free: int


@dataclass(frozen=True)
class Facts:
    """What a device says of itself; '' and 0 where it does not say.

    ``system``, ``release``, ``machine``: as uname has them. ``bits``: of its programs, which may be 32 under a kernel
    of 64. ``libc``: the version of glibc. ``python``: (command, "3.11") of the first Python that is new enough.
    ``cpuinfo``: the lines of /proc/cpuinfo that ``apps/machine.py`` reads.
    """

    system: str
    release: str
    machine: str
    bits: int
    libc: str
    threads: int
    memory_bytes: int
    huge_pages: str
    tools: frozenset[str]
    places: tuple[Place, ...]
    python: tuple[str, str] | None
    cpuinfo: str


@dataclass(frozen=True)
class Load:
    """Files to be pushed, by their paths in the device's folder; ``executable``: those that are programs."""

    files: Mapping[str, Path]
    executable: frozenset[str] = field(default_factory=frozenset)

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(path.stat().st_size for path in self.files.values())

    def __or__(self, other: Load) -> Load:
        """Both."""
        return Load({**self.files, **other.files}, self.executable | other.executable)

    @staticmethod
    def checked(name: str) -> str:
        """``name`` where it is a plain path inside the folder; DeviceError otherwise."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.as_posix() != name or "\0" in name or name == ".":
            raise DeviceError(f"{name!r} is no plain path inside a device's folder; rename the file")
        return name


def shortest(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def lines_of(text: str) -> Iterator[tuple[str, str]]:
    """What a script said by ``edgeloop:NAME=VALUE`` lines, among whatever a login says too."""
    for line in text.splitlines():
        if line.startswith("edgeloop:"):
            name, _, value = line.removeprefix("edgeloop:").partition("=")
            yield name, value.strip()
