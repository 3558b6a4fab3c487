"""Swift on Linux, by a compiler of this computer or by Debian's in a folder: .venv/bin/python tests/swift_compiler.py.

``make swift`` calls this: where there is no swiftc, debootstrap unpacks a Debian with it into build/swift (3 GB and
minutes, by a network; root alone may go into it). It has Swift's own libraries and none of Apple's frameworks: for
these there are stand-ins in apps/ios/Tests/StandIns, with the names and types that the sources use.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import debian_root

log = logging.getLogger("swift_compiler")
CHECKOUT = Path(__file__).resolve().parents[1]
ROOT = CHECKOUT / "build" / "swift"
SUITE = "trixie"
PACKAGES = ("swiftlang", "libc6-dev", "libstdc++-14-dev")
OPTIONS = ("-swift-version", "6", "-warnings-as-errors", "-parse-as-library", "-Onone", "-module-cache-path")
IN_IT = """
root=$0
while [ "$1" != -- ]; do mkdir -p "$root$1" && mount --rbind "$1" "$root$1" || exit; shift; done
shift && mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" && exec chroot "$root" "$@"
"""
"""A shell's: folders of this computer at the same places in the system, then a command in it; mounts are its own."""


def missing() -> str:
    """Why no Swift can be compiled here, or nothing."""
    if sys.platform != "linux":
        return "these stand-ins for Apple's frameworks are for Linux"
    if shutil.which("swiftc"):
        return ""
    if not debian_root.is_there(ROOT):
        return "no swiftc (as root: make swift)"
    return _obstacle()


def _obstacle() -> str:
    """Why there can be no such system here, or nothing."""
    if platform.machine() != "x86_64":
        return f"no swiftc, and tests know Debian's for x86_64, not for {platform.machine()}"
    if os.getuid():
        return "no swiftc, and this is not root, who alone may go into a Debian that has it"
    absent = debian_root.missing(ROOT)
    return f"no swiftc, and no {', '.join(absent)} (apt install debootstrap)" if absent else ""


def module(name: str, sources: Iterable[Path], folder: Path, options: Sequence[str] = ()) -> None:
    """Compile ``sources`` to the module ``name`` and its library in ``folder``, where those that it imports are."""
    goal = folder / f"lib{name}.so"
    _compile([*_words(sources, folder, options), "-emit-module", "-emit-library", "-module-name", name], goal)


def program(name: str, sources: Iterable[Path], folder: Path, options: Sequence[str] = ()) -> list[str]:
    """Compile ``sources`` with modules of ``folder`` to a program in it → the command that runs it."""
    goal = folder / name
    _compile([*_words(sources, folder, options), "-emit-executable", "-module-name", name], goal)
    if shutil.which("swiftc"):
        return [str(goal)]
    # By the system's own loader, so that it runs here, beside this computer's Python.
    libraries = (folder, ROOT / "usr/lib/x86_64-linux-gnu", ROOT / "usr/libexec/swift/lib/swift/linux")
    loader = ROOT / "usr/lib64/ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", ":".join(map(str, libraries)), str(goal)]


def said(text: str, folder: Path) -> str:
    """What the compiler says of ``text``, which may import modules of ``folder``; nothing where it is right."""
    source = folder / "said.swift"
    source.write_text(text, encoding="utf-8")
    return _run(
        "swiftc", [*_words([source], folder, ()), "-typecheck", "-module-name", "said"], folder
    ).stdout


def package(folder: Path, scratch: Path) -> dict[str, Any]:
    """What the package description in ``folder`` describes."""
    words = ["--package-path", str(folder), "--scratch-path", str(scratch), "dump-package"]
    done = _run("swift-package", words, scratch)
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _words(sources: Iterable[Path], folder: Path, options: Sequence[str]) -> list[str]:
    words = [*OPTIONS, str(folder / "cache"), "-I", str(folder), "-L", str(folder), *options]
    return [*words, *sorted(map(str, sources))]


def _compile(words: list[str], goal: Path) -> None:
    # On Linux libswiftObservation of Swift 6.0 names a function of the runtime that is hidden: one that ends a program.
    link = [
        word for flag in (f"-rpath={goal.parent}", "--allow-shlib-undefined") for word in ("-Xlinker", flag)
    ]
    done = _run("swiftc", [*words, *link, "-o", str(goal)], goal.parent)
    assert done.returncode == 0, done.stdout


def _run(tool: str, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [tool, *words]
    if not shutil.which("swiftc"):
        folders = (str(CHECKOUT), str(folder))
        path = "PATH=/usr/libexec/swift/bin:/usr/bin:/bin"
        inside = ["/usr/bin/env", "-i", path, "HOME=/root", "LC_ALL=C.UTF-8", *command]
        command = ["unshare", "--mount", "sh", "-c", IN_IT, str(ROOT), *folders, "--", *inside]
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=debian_root.ENVIRONMENT,
        check=False,
        timeout=600,
    )


def main() -> int:
    """Have a compiler; exit status 1 where that fails, 0 where it cannot be, with the reason."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if sys.platform == "linux" and not shutil.which("swiftc"):
        if reason := _obstacle():
            log.info("swift is skipped: %s", reason)
            return 0
        if not debian_root.is_there(ROOT):
            log.info("unpacking a Debian with Swift into build/swift (3 GB, some minutes)")
        try:
            debian_root.unpack(ROOT, SUITE, "amd64", PACKAGES)
        except AssertionError as error:
            log.error("%s", error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
