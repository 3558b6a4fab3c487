"""edgeloop itself as what runs on a device: its wheel and those it needs, unpacked there. No pip is needed there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.folder import Bundle
from ...runtime.bundle.manifest import MANIFEST
from ...runtime.engines.table import ENGINES, USUAL
from ...runtime.errors import BundleError, UsageError
from .cross import MACHINES, library_for
from .device import DeviceError, Facts, Load
from .shell import ShellFolder
from .wheels import download, own_wheel, requirements, unpacked_bytes

UNPACK = r"""
import pathlib, sys, zipfile
goal = pathlib.Path(sys.argv[1])
for name in sys.argv[2:]:
    with zipfile.ZipFile(name) as file:
        file.extractall(goal)
    pathlib.Path(name).unlink()
for data in goal.glob("*.data"):
    for part in ("purelib", "platlib"):
        for path in sorted((data / part).rglob("*")):
            there = goal / path.relative_to(data / part)
            if path.is_file():
                there.parent.mkdir(parents=True, exist_ok=True)
                path.replace(there)
"""
"""What a wheel is: files, and some that belong elsewhere."""
RUNS_THERE = ("native", "onnx", "executorch", "reference")
"""Engines that run on Linux."""


def engine_of(bundle: Bundle, named: str | None) -> str:
    """Return the engine that runs ``bundle`` on a board; UsageError or BundleError where none does."""
    if named is not None and named not in ENGINES:
        raise UsageError(f"unknown engine {named!r}; known: {', '.join(ENGINES)}")
    engine = named or (USUAL[0] if ENGINES[USUAL[0]].target in bundle.manifest.targets else USUAL[-1])
    if engine not in RUNS_THERE:
        raise UsageError(f"engine {engine} does not run on Linux; choose --engine {' or '.join(RUNS_THERE)}")
    if not ENGINES[engine].runs(bundle):
        raise BundleError(
            f"{bundle.folder} holds no {ENGINES[engine].target} target (only: {', '.join(bundle.manifest.targets)}), "
            f"which engine {engine} needs; choose another --engine"
        )
    return engine


def bundle_load(bundle: Bundle, into: str = "bundle") -> Load:
    """All of a bundle, as files in the folder ``into``."""
    files = {name: bundle.path(name) for name in bundle.manifest.files} | {MANIFEST: bundle.folder / MANIFEST}
    return Load({f"{into}/{name}": path for name, path in files.items()})


def python_of(name: str, facts: Facts) -> str:
    """The command of Python on the device ``name``; DeviceError where there is none that is new enough."""
    if facts.python is None:
        raise DeviceError(
            f"{name} has no Python 3.11 or newer (apt install python3); the C++ host needs none: --host native"
        )
    return facts.python[0]


def check_machine(name: str, facts: Facts) -> None:
    """DeviceError for a computer that nothing here is for."""
    if facts.system != "Linux" or facts.machine not in MACHINES:
        raise DeviceError(
            f"{name} is {facts.system or 'nothing known'} on {facts.machine or 'an unknown processor'}; boards with "
            f"Linux on {' or '.join(MACHINES)} are known"
        )
    if facts.bits == 32:
        raise DeviceError(
            f"{name} has a processor of 64 bits and programs of 32 ({facts.machine}); install a system of 64 bits there"
        )


@dataclass(frozen=True)
class PythonHost:
    """What is needed there: wheels, and the Python that runs them."""

    python: str
    load: Load
    unpacked: int

    @property
    def need(self) -> int:
        """Bytes that it takes there at most: wheels and what is in them."""
        return self.load.bytes + self.unpacked

    @property
    def installed(self) -> int:
        """Bytes of what stays there."""
        return self.unpacked

    @staticmethod
    def of(
        name: str, facts: Facts, engine: str, scratch: Path, offline: Path | None, more: Sequence[str] = ()
    ) -> PythonHost:
        """Gather it in ``scratch`` for the device ``name``, with wheels of the packages ``more``, too.

        DeviceError, one line, where that cannot be.
        """
        check_machine(name, facts)
        python, version = python_of(name, facts), facts.python[1] if facts.python else ""
        if "tar" not in facts.tools:
            raise DeviceError(f"{name} has no tar, by which files come there; install it there")
        if engine == "executorch" and "g++" not in facts.tools:
            raise DeviceError(
                f"{name} has no g++, by which engine executorch compiles a bridge to its library; apt install g++ "
                "there, or choose another --engine"
            )
        library = library_for(facts.machine) if engine == "native" else None
        wheels = download(requirements([ENGINES[engine].package, *more]), facts, version, scratch, offline)
        wheels.append(own_wheel(scratch, facts.machine, library))
        return PythonHost(python, Load({path.name: path for path in wheels}), unpacked_bytes(wheels))

    def install(self, folder: ShellFolder, goal: str = "site") -> int:
        """Push it to the folder and unpack it there into ``goal`` → bytes that were sent."""
        sent = folder.push(self.load)
        folder.ask(
            f"{self.python} -c {shlex.quote(UNPACK)} {shlex.quote(goal)} {shlex.join(self.load.files)}", None
        )
        for name in self.load.files:
            folder.forget(name)
        return sent

    def run(self, folder: ShellFolder, words: Sequence[str]) -> str:
        """Run Python there with ``words``, as ``-m edgeloop.apps.cli …`` → what it writes."""
        return folder.run([self.python, *words], environment(f"{folder.path}/site"))


def environment(site: str) -> dict[str, str]:
    """What Python needs in its environment to find edgeloop in the folder ``site``."""
    return {"PYTHONPATH": site, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
