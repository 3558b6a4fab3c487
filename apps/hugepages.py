"""Weights on huge pages: restart the process once with glibc set to request them from the kernel.

Decoding reads every weight for every token, and with 4 KiB pages part of the time goes into address translation.
What it brings depends on the machine: 10 to 28% of the decode speed on one, nothing that could be measured on
another (``EDGELOOP_HUGE_PAGES=0 edgeloop bench`` tells). glibc reads its tunables only when a process starts, so the
process replaces itself, before anything heavy is imported.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

SWITCH = "EDGELOOP_HUGE_PAGES"
"""Environment variable: ``0`` switches this off. The restarted process finds ``restarted`` in it."""

_TUNABLES = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"
_FIRST_GLIBC = (2, 35)
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Replace this process by itself with huge pages on; return when that is not wanted or not possible."""
    environment = environment_with_huge_pages(os.environ)
    if environment is None or not getattr(sys, "orig_argv", None) or not sys.executable:
        return
    if huge_pages_status() not in ("madvise", "always"):
        return
    try:
        # argv[0] as a full path: python finds its virtual environment by it.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:
        return  # slower, not wrong


def environment_with_huge_pages(environment: Mapping[str, str]) -> dict[str, str] | None:
    """``environment`` with the tunable merged in; None when it is switched off, done, or the user's own."""
    tunables = environment.get(_TUNABLES, "")
    if environment.get(SWITCH) in ("0", "restarted") or _TUNABLE in tunables:
        return None
    merged = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    return {**environment, _TUNABLES: merged, SWITCH: "restarted"}


def huge_pages_status() -> str:
    """``always``, ``madvise`` or ``never`` as the kernel has it, or why they cannot be had here."""
    if sys.platform != "linux":
        return "not Linux"
    version = glibc_version()
    if version is None or version < _FIRST_GLIBC:
        return "needs glibc 2.35"
    try:
        chosen = re.search(r"\[(\w+)\]", _KERNEL.read_text(encoding="utf-8"))
    except OSError:
        return "not in this kernel"
    return chosen[1] if chosen else "unknown"


def glibc_version() -> tuple[int, ...] | None:
    """The C library's version, None when it is another one (musl, bionic)."""
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return None
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", name)
    return (int(found[1]), int(found[2])) if found else None


def huge_pages_on(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process's allocator requests huge pages."""
    return f"{_TUNABLE}=1" in environment.get(_TUNABLES, "")
