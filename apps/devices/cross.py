"""Compilers for the processors of other computers: this one's own, Debian's cross-compiler, or zig."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path

from ...runtime.engines.native.build import LIBRARY, NAMES, BuildError, Target, build
from .device import DeviceError

MACHINES = ("aarch64", "x86_64")
"""Processors of boards, by the names that uname gives them, which wheels and compilers know."""
ROOT = Path(__file__).parents[2]
"""The package's folder; a checkout's has pyproject.toml."""
ADVICE = "apt install g++-aarch64-linux-gnu, or pip install ziglang"


def cross_target(machine: str, static: bool = False) -> Target:
    """Return what compiles for Linux on ``machine``, here; DeviceError where nothing does.

    ``static``: for a program that wants nothing of the system, for which zig brings a C library of its own.
    """
    compiler = zig()
    if static and compiler:  # half of what it is with glibc, and no slower: programs.LINK_ZIG
        return Target((*compiler, "c++", "-target", f"{machine}-linux-musl"), "linux", machine)
    if sys.platform == "linux" and machine == platform.machine():
        try:
            return Target.here()
        except BuildError as error:
            if not compiler:
                raise DeviceError(str(error)) from error
    if shutil.which(f"{machine}-linux-gnu-g++"):
        return Target((f"{machine}-linux-gnu-g++",), "linux", machine)
    if compiler:
        return Target((*compiler, "c++", "-target", f"{machine}-linux-gnu.2.28"), "linux", machine)
    raise DeviceError(f"nothing here compiles the lane engine for {machine}: {ADVICE}")


def zig() -> tuple[str, ...]:
    """Return zig's command; nothing where there is none."""
    if named := shlex.split(os.environ.get("ZIG", "")):
        return tuple(named)
    return (sys.executable, "-m", "ziglang") if importlib.util.find_spec("ziglang") else ()


def objects_of(target: Target) -> Path | None:
    """Return the folder that keeps what was compiled for ``target``, in the user's cache; DeviceError without one.

    None: in a checkout, by this computer's compiler for itself, where its own build keeps them.
    """
    if (ROOT / "pyproject.toml").is_file() and _is_here(target):
        return None
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
        kind = "-".join(word.lstrip("-") for word in target.compiler[-1:])
        folder = root / "edgeloop" / "cross" / f"{target.system}-{target.machine}-{Path(kind).name}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise DeviceError(
            f"there is no folder to compile in ({error}); set XDG_CACHE_HOME to one of your own"
        ) from error
    return folder


def library_for(machine: str) -> Path:
    """Return the lane engine's library for Linux on ``machine``, compiled where it is not there."""
    target = cross_target(machine)
    objects = objects_of(target)
    goal = LIBRARY if objects is None else objects / NAMES["linux"]
    try:
        build(goal, objects, target)
    except BuildError as error:
        raise DeviceError(f"the lane engine cannot be compiled for {machine}: {error}") from error
    return goal


def _is_here(target: Target) -> bool:
    return not target.zig and target.system == sys.platform and target.machine == platform.machine()
