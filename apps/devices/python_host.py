"""edgeloop itself as what runs on a device: its wheel and those it needs, unpacked there. No pip is needed there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.folder import Bundle
from ...runtime.engines.table import ENGINES, USUAL
from ...runtime.errors import BundleError, UsageError
from .cross import MACHINES, library_for
from .device import DeviceError, Facts, Load
from .shell import ShellFolder
from .wheels import download, own_wheel, requirements, unpacked_bytes

UNPACK = r"""
import pathlib, sys, zipfile
goal = pathlib.Path("site")
for name in sys.argv[1:]:
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

    @staticmethod
    def of(name: str, facts: Facts, engine: str, scratch: Path, offline: Path | None) -> PythonHost:
        """Gather it in ``scratch`` for the device ``name``; DeviceError, one line, where that cannot be."""
        check_machine(name, facts)
        if facts.python is None:
            raise DeviceError(f"{name} has no Python 3.11 or newer (apt install python3)")
        if "tar" not in facts.tools:
            raise DeviceError(f"{name} has no tar, by which files come there; install it there")
        if engine == "executorch" and "g++" not in facts.tools:
            raise DeviceError(
                f"{name} has no g++, by which engine executorch compiles a bridge to its library; apt install g++ "
                "there, or choose another --engine"
            )
        python, version = facts.python
        library = library_for(facts.machine) if engine == "native" else None
        wheels = download(requirements([ENGINES[engine].package]), facts, version, scratch, offline)
        wheels.append(own_wheel(scratch, facts.machine, library))
        return PythonHost(python, Load({path.name: path for path in wheels}), unpacked_bytes(wheels))

    def install(self, folder: ShellFolder) -> int:
        """Push it to the folder and unpack it there → bytes that were sent."""
        sent = folder.push(self.load)
        folder.ask(f"{self.python} -c {shlex.quote(UNPACK)} {shlex.join(self.load.files)}", None)
        return sent

    def run(self, folder: ShellFolder, words: Sequence[str]) -> str:
        """Run the command line there with ``words`` → what it writes."""
        environment = {"PYTHONPATH": f"{folder.path}/site", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
        return folder.run([self.python, "-m", "edgeloop.apps.cli", *words], environment)
