"""The lane engine's library, compiled from src/: ``python -m edgeloop.runtime.engines.native.build``.

The package's own build calls this too (``packaging.py``), before there is an edgeloop: nothing but the standard library
is imported here. Objects are kept by what they were made of, so that a change compiles what it changes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent
SOURCES = FOLDER / "src"
NAMES = {"linux": "libedgeloop.so", "darwin": "libedgeloop.dylib", "win32": "edgeloop.dll"}
"""Of the library, by system."""
LIBRARY = FOLDER / NAMES.get(sys.platform, NAMES["linux"])
SYSTEMS = ("linux", "darwin")
"""Where it is compiled on the computer itself; for Windows on another one (``make native-cross``)."""
COMPILERS = ("c++", "g++", "clang++")
ADVICE = "install a C++17 compiler (apt install g++) and run python -m edgeloop.runtime.engines.native.build"
"""How to get the library where it is missing."""

COMMON = (
    "-std=c++17",
    "-ffp-contract=off",  # no multiplication and addition become one unless a kernel says so: every machine's bits
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-pthread",
    "-Wall",
    "-Wextra",
)
KERNEL = ("-O3", "-fno-exceptions", "-fno-asynchronous-unwind-tables")
SMALL = re.compile(r"(api|model\w*|program\w*|plan|engine|calls|measure|pace|json|sha256|\w+_api)\.cpp")
"""Files, beside those in src/text, src/context and src/update, of what is done once a model or once a call:
a tenth of the library less, and no pass that is slower."""

_X86, _ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
KERNELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "avx2": (_X86, ("-mavx2", "-mf16c")),
    "avxvnni": (_X86, ("-mavx2", "-mf16c", "-mavxvnni")),
    "avx512": (_X86, _AVX512),
    "amx": (_X86, (*_AVX512, "-mamx-tile", "-mamx-int8")),
    "neon": (_ARM, ()),
    "dotprod": (_ARM, ("-march=armv8.2-a+dotprod",)),
    "i8mm": (_ARM, ("-march=armv8.2-a+dotprod+i8mm",)),
}
"""Of files in src/kernels by their first word: the processors that they are for, and the flags that they want."""
FOR_ZIG = {
    "-march=armv8.2-a+dotprod": "-mcpu=generic+dotprod",
    "-march=armv8.2-a+dotprod+i8mm": "-mcpu=generic+dotprod+i8mm",
}
"""zig's clang takes no -march."""
LINK = {
    "linux": (
        "-shared",
        "-pthread",
        "-s",
        "-Wl,--gc-sections",
        "-Wl,--exclude-libs,ALL",
        f"-Wl,--version-script={SOURCES / 'library.map'}",  # not the standard library's templates either
        "-Wl,--no-undefined",
        "-Wl,-z,noseparate-code",  # no pages that are filled up between code and constants
        f"-Wl,-soname,{NAMES['linux']}",  # what is linked with it looks for this name, not for the path at that time
    ),
    "darwin": (
        "-dynamiclib",
        "-pthread",
        "-Wl,-dead_strip",
        "-Wl,-x",
        f"-Wl,-install_name,@rpath/{NAMES['darwin']}",
    ),
    "win32": ("-shared", "-s", "-Wl,--gc-sections"),
}
STATIC: dict[str, tuple[str, ...]] = {
    "linux": ("-static-libstdc++", "-static-libgcc"),
    "darwin": (),
    "win32": (),
}
"""The library then needs nothing but the C library; some systems have no libstdc++.a, and there it needs that too."""


class BuildError(RuntimeError):
    """Why there is no library, in one line."""


@dataclass(frozen=True)
class Target:
    """What the library is compiled for: a system as sys.platform has it, a processor, and the compiler that does it."""

    compiler: tuple[str, ...]
    system: str = sys.platform
    machine: str = platform.machine()

    @classmethod
    def here(cls) -> Target:
        """This computer; BuildError without a compiler, or on a system that there are no flags for."""
        if sys.platform not in SYSTEMS:
            raise BuildError(f"the lane engine is compiled on {' and '.join(SYSTEMS)}, not on {sys.platform}")
        return cls(_compiler())

    def sources(self) -> list[Path]:
        """What the library is compiled from; the host, benchmarks, tests and fuzzers lie beside it."""
        every = sorted(SOURCES.rglob("*.cpp"))
        return [path for path in every if not re.match("bench|test|fuzz|run", path.name) and self._has(path)]

    def flags(self, source: Path) -> tuple[str, ...]:
        """What ``source`` is compiled with. Kernels whose flags the compiler does not know are none: an empty table."""
        wanted = KERNELS[_kernel(source)][1] if _kernel(source) in KERNELS else ()
        plain = COMMON + self._level(source) + (() if self.system == "win32" else ("-fPIC",))
        return plain + _known(self.compiler, wanted)

    @property
    def zig(self) -> bool:
        """Whether the compiler is zig's clang, which has a C library of its own, and takes other flags."""
        return any(Path(word).name in ("zig", "ziglang") for word in self.compiler)

    def _has(self, source: Path) -> bool:
        return self.machine in KERNELS.get(_kernel(source), ((self.machine,), ()))[0]

    def _level(self, source: Path) -> tuple[str, ...]:
        if source.parent.name == "kernels":
            return KERNEL
        if source.parent.name in ("text", "context", "update") or SMALL.fullmatch(source.name):
            return ("-Oz",) if self.zig else ("-Os",)  # clang's -Os is near to its -O2
        return ("-O2",)


def _kernel(source: Path) -> str:
    return re.split(r"[_.]", source.name)[0] if source.parent.name == "kernels" else ""


@cache
def _known(compiler: tuple[str, ...], flags: tuple[str, ...]) -> tuple[str, ...]:
    """``flags`` as ``compiler`` writes them; none where it does not know them."""
    for written in (flags, tuple(FOR_ZIG.get(flag, flag) for flag in flags)):
        if not written or _takes(compiler, written):
            return written
    log.info("%s does not know %s: these kernels are left out", compiler[0], " ".join(flags))
    return ()


def _takes(compiler: tuple[str, ...], flags: tuple[str, ...]) -> bool:
    try:
        with tempfile.TemporaryDirectory() as scratch:  # some write a file for -E, too
            run_tool([*compiler, *flags, "-E", "-x", "c++", os.devnull, "-o", str(Path(scratch) / "probe")])
    except BuildError:
        return False
    return True


def build(library: Path = LIBRARY, objects: Path | None = None, target: Target | None = None) -> bool:
    """Compile what changed and link it to ``library``; False when that was up to date.

    ``objects``: where objects are kept, of one target. ``target``: None for this computer. BuildError without a
    compiler, or for what it refuses.
    """
    target = target or Target.here()
    sources = target.sources()
    if not sources:
        raise BuildError(f"{SOURCES} holds no sources; install edgeloop again")
    try:
        with objects_folder(objects) as folder, alone(folder):
            made = compile_all(target, sources, folder)
            link = (*LINK[target.system], *STATIC[target.system])
            key = _digest(_version(target.compiler), *link, *(path.name for path in made))
            stamp = folder / f"linked-{_digest(str(library.resolve()))[:12]}"
            if library.is_file() and stamp.is_file() and stamp.read_text(encoding="ascii") == key:
                return False
            _link(target, made, library)
            stamp.write_text(key, encoding="ascii")
            return True
    except OSError as error:
        raise BuildError(f"cannot write the lane engine's library: {error}") from error


def _compiler() -> tuple[str, ...]:
    named = tuple(shlex.split(os.environ.get("CXX", "")))
    if named:
        if shutil.which(named[0]) is None:
            raise BuildError(f"CXX is {named[0]!r}, which is not there; {ADVICE}")
        return named
    for name in COMPILERS:
        if shutil.which(name):
            return (name,)
    raise BuildError(f"found no C++ compiler ({', '.join(COMPILERS)}); {ADVICE}")


def compile_all(
    target: Target, sources: Sequence[Path], folder: Path, options: Sequence[str] = ()
) -> list[Path]:
    """The objects of ``sources`` in ``folder``, in their order."""
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, 8))) as pool:
        return list(pool.map(lambda source: compile_object(target, source, folder, options), sources))


def compile_object(target: Target, source: Path, folder: Path, options: Sequence[str] = ()) -> Path:
    """The object of ``source`` in ``folder``, by the name of all that it depends on; those of other contents go."""
    parts = [path.read_bytes().decode(errors="replace") for path in _included(source)]
    command = (*target.compiler, *target.flags(source), *options)
    key = _digest(_version(target.compiler), *command, *parts)
    goal = folder / f"{'-'.join(source.relative_to(SOURCES).with_suffix('').parts)}-{key[:16]}.o"
    if not goal.is_file():
        log.info("compiling %s", source.relative_to(SOURCES))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / "object.o"
            run_tool([*command, "-c", str(source), "-o", str(fresh)])
            fresh.replace(goal)
        for old in folder.glob(f"{goal.name.rpartition('-')[0]}-{'?' * 16}.o"):
            if old != goal:
                old.unlink()
    return goal


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return run_tool([*compiler, "--version"])


def _link(target: Target, objects: Sequence[Path], library: Path) -> None:
    static = STATIC[target.system]
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".native-") as scratch:
        fresh = Path(scratch) / library.name
        command = [*target.compiler, *map(str, objects), *LINK[target.system], "-o", str(fresh)]
        try:
            run_tool([*command, *static])
        except BuildError:
            if not static:
                raise
            run_tool(command)
        fresh.replace(library)  # a process that has the old one mapped keeps it


def _included(source: Path) -> list[Path]:
    """``source`` and the headers of ours that it includes, and those that they include."""
    found, open_ = [source], [source]
    while open_:
        path = open_.pop()
        for name in re.findall(
            r'^\s*#\s*include\s*"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            for place in (path.parent / name, SOURCES / name):
                if place.is_file() and place.resolve() not in found:
                    found.append(place.resolve())
                    open_.append(place.resolve())
    return found


def run_tool(command: Sequence[str]) -> str:
    """What ``command`` writes; BuildError with its first error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started ({error.strerror}); {ADVICE}") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        reason = next((line for line in lines if "error" in line), lines[-1] if lines else "no message")
        raise BuildError(f"{command[0]} failed: {reason.strip()[:300]}; set CXX to a newer compiler")
    if done.stderr.strip():
        log.warning("%s", done.stderr.strip())
    return done.stdout


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextmanager
def objects_folder(named: Path | None) -> Iterator[Path]:
    """``named``, or build/native of a checkout; an installed package keeps none."""
    root = FOLDER.parents[2]
    if named is None and not (root / "pyproject.toml").is_file():
        with tempfile.TemporaryDirectory(prefix="edgeloop-native-") as scratch:
            yield Path(scratch)
        return
    folder = named or root / "build" / "native"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While no other process builds in ``folder``."""
    import fcntl

    with (folder / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(words: Sequence[str] = ()) -> int:
    """Build the library beside this file.

    ``--sources SYSTEM MACHINE COMPILER…``, for builds of apps by CMake or Apple's tools, lists what the library is made
    of: a line has a file and its flags, with | between them.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if words[:1] == ["--sources"] and len(words) > 3:
        target = Target(tuple(words[3:]), words[1], words[2])
        for source in target.sources():
            sys.stdout.write("|".join((str(source), *target.flags(source))) + "\n")
        return 0
    try:
        made = build()
    except BuildError as error:
        log.error("%s", error)
        return 1
    log.info("%s %s: %d bytes", "made" if made else "is up to date:", LIBRARY, LIBRARY.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
