"""A Debian in a folder, unpacked and not configured: so it may be for another processor than this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
TOOLS = ("debootstrap", "dpkg-deb", "unshare", "chroot")
"""Of Debian's packages debootstrap, dpkg, util-linux and coreutils."""
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
"""Of the tools, some of which are not where everybody looks."""


def missing(root: Path, *others: str) -> list[str]:
    """What is not here of the tools that make ``root`` and go into it, and of ``others``."""
    wanted = TOOLS[1:] if is_there(root) else TOOLS
    return [tool for tool in (*others, *wanted) if not shutil.which(tool, path=ENVIRONMENT["PATH"])]


def is_there(root: Path) -> bool:
    """Whether ``unpack`` has ended for ``root``."""
    return (root / "done").is_file()


def unpack(root: Path, suite: str, architecture: str, packages: Sequence[str]) -> None:
    """Make the system of ``suite`` with ``packages`` in ``root``, if it is not there; AssertionError for a failure."""
    if is_there(root):
        return
    shutil.rmtree(root, ignore_errors=True)
    command = [
        "debootstrap", "--foreign", f"--arch={architecture}", "--variant=minbase", f"--include={','.join(packages)}",
        suite, str(root), MIRROR,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    if done.returncode:
        raise AssertionError(f"debootstrap failed: {done.stdout.decode(errors='replace')[-500:]}")
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        done = subprocess.run(["dpkg-deb", "-x", str(package), str(root)])
        if done.returncode:
            raise AssertionError(f"dpkg-deb cannot unpack {package.name} into {root}; is there room for it?")
        package.unlink()
    (root / "done").touch()
