"""The bridge to ExecuTorch's C++ libraries, compiled once for each version of them and kept.

The Python bindings of the executorch wheel import torch and copy what they return. Its C++ libraries need neither, so
``bridge.cpp`` beside this file is compiled against them when the engine is first used, some seconds with g++.

What lies in the cache is run as code. So the folder must be this user's own, and nobody else may write to it or
replace it; the library is what was written there, to the last byte.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from ...errors import EngineError

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("bridge.cpp")
PARTS = (SOURCE, SOURCE.with_name("ptd.h"))
LIBRARIES = ("executorch_backend_xnnpack", "executorch_threadpool", "executorch")
SUFFIXES = {"linux": ".so", "darwin": ".dylib"}
FLAGS = {"linux": ["-shared", "-Wl,--no-as-needed"], "darwin": ["-dynamiclib"]}
PATIENCE = 300
"""Seconds that compiling may take; a small board needs some twenty."""


def unavailable_reason() -> str:
    """Return why this computer cannot run the engine, whatever is installed; empty where it can."""
    if sys.platform in SUFFIXES:
        return ""
    return f"runs on Linux and macOS, where executorch's wheel has C++ libraries, not on {sys.platform}"


def wheel() -> Path:
    """Return the folder of the installed executorch; EngineError when it is missing or not whole."""
    if reason := unavailable_reason():
        raise EngineError(f"engine executorch {reason}; choose another with --engine")
    found = importlib.util.find_spec("executorch")
    places = list(found.submodule_search_locations or ()) if found else []
    for place in places:
        if (Path(place) / "lib").is_dir():
            for name in LIBRARIES:
                file = f"lib{name}{SUFFIXES[sys.platform]}"
                if not (Path(place) / "lib" / file).is_file():
                    raise EngineError(
                        f"{place}/lib has no {file}, which engine executorch needs; install the wheel again: "
                        'pip install --force-reinstall "edgeloop[executorch]"'
                    )
            return Path(place)
    raise EngineError(
        'engine executorch needs the executorch wheel with its libraries: pip install "edgeloop[executorch]"'
    )


def compile_bridge(profiled: bool = False) -> Path:
    """Return the compiled bridge, which is made unless a whole one is there; EngineError where it cannot be.

    ``profiled``: with ExecuTorch's tracer, which takes time and memory.
    """
    home, version = wheel(), importlib.metadata.version("executorch")
    libraries = (*LIBRARIES, "executorch_etdump") if profiled else LIBRARIES
    compiler = os.environ.get("CXX", "")
    parts = b"".join(part.read_bytes() for part in PARTS)
    key = hashlib.sha256(parts + f"{version} {home} {libraries}".encode()).hexdigest()[:16]
    folder = cache_folder()
    library = folder / f"executorch-{key}{SUFFIXES[sys.platform]}"
    if not is_whole(library):
        log.info("compiling %s", library)
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / library.name
                _compile(compiler, home, libraries, profiled, made, version)
                digest = made.with_suffix(".sha256")
                digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest(), encoding="utf-8")
                made.replace(library)  # two processes may have made the same
                digest.replace(library.with_suffix(".sha256"))
        except OSError as error:
            raise _unwritable(folder, error) from error
    return library


def cache_folder() -> Path:
    """Return the folder for compiled code, this user's own; EngineError when it is not, or cannot be written to."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification of XDG_CACHE_HOME: a relative path is to be ignored.
        root = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError as error:
        raise EngineError(
            "engine executorch keeps a compiled bridge, and this user has no home folder; set XDG_CACHE_HOME to a "
            "folder of your own"
        ) from error
    folder = root / "edgeloop"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (folder, *folder.resolve().parents):
            if reason := _not_safe(path.stat(), own=path == folder):
                raise EngineError(
                    f"engine executorch runs compiled code from {folder}, and {path} {reason}; fix that "
                    f"(chown, chmod go-w), or set XDG_CACHE_HOME to a folder of your own"
                )
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def is_whole(library: Path) -> bool:
    """Return whether the file is there, this user's own, and what the compiler made of it."""
    try:
        digest = library.with_suffix(".sha256")
        for found in (library.lstat(), digest.lstat()):
            if not stat.S_ISREG(found.st_mode) or _not_safe(found, own=True):
                return False
        return hashlib.sha256(library.read_bytes()).hexdigest() == digest.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _not_safe(found: os.stat_result, own: bool) -> str:
    """Return why others may change a file or folder, or what is in it; '' if they may not.

    ``own``: it must be this user's, and its group counts as others. The folders above may be root's, and may be
    written by all if they are sticky, as /tmp is.
    """
    user, mode = os.getuid(), stat.S_IMODE(found.st_mode)
    if found.st_uid not in ({user} if own else {user, 0}):
        return f"belongs to another user (id {found.st_uid}, this is {user})"
    if mode & (0o022 if own else 0o002) and (own or not mode & stat.S_ISVTX):
        return f"may be written by others (mode {mode:03o})"
    return ""


def _compile(
    named: str, home: Path, libraries: tuple[str, ...], profiled: bool, made: Path, version: str
) -> None:
    try:
        command = shlex.split(named) or [shutil.which("g++") or shutil.which("clang++") or ""]
    except ValueError:  # a quotation mark without its second
        command = [named]
    if shutil.which(command[0]) is None:
        found = f"CXX is {named!r}, which is none" if named else "no C++ compiler was found"
        raise EngineError(
            f"engine executorch compiles a small bridge to the wheel's libraries once, and {found}; install g++ "
            "(apt install g++, or xcode-select --install on a Mac) or set CXX"
        )
    lib, include = home / "lib", home / "include"
    command += ["-std=c++17", "-O2", "-fPIC", *FLAGS[sys.platform], str(SOURCE), "-o", str(made)]
    command += [f"-I{include}", f"-I{include / 'executorch/runtime/core/portable_type/c10'}"]
    command += [f"-L{lib}", f"-Wl,-rpath,{lib}", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
    command += ["-DEDGELOOP_PROFILE"] if profiled else []
    command += [f"-l{name}" for name in libraries]
    # A session of its own: what a compiler starts ends with it.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{command[0]} did not compile the bridge to executorch in {PATIENCE} seconds and was stopped; set CXX to "
            "another compiler"
        ) from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode or not made.is_file():
        reason = next((line for line in said.splitlines() if "error" in line), "no reason given")
        raise EngineError(
            f"{command[0]} cannot compile the bridge to executorch {version}: {reason[:200]}; install g++ 9 or newer, "
            "or set CXX"
        )


def _unwritable(folder: Path, error: OSError) -> EngineError:
    return EngineError(
        f"engine executorch keeps a compiled bridge in {folder}, which cannot be written ({error.strerror}); set "
        "XDG_CACHE_HOME to a folder of your own"
    )
