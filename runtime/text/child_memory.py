"""The memory of another process, on each operating system."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable


def resident_bytes(process: subprocess.Popen[bytes]) -> int | None:
    """Return the resident memory of a child process in bytes; None when it has ended or the system does not tell."""
    read = READERS.get(sys.platform, _by_ps)
    try:
        return read(process)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def _linux(process: subprocess.Popen[bytes]) -> int:
    with open(f"/proc/{process.pid}/statm", "rb", buffering=0) as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _by_ps(process: subprocess.Popen[bytes]) -> int:
    """Return what ``ps`` says, in kilobytes: on macOS and every other Unix."""
    told = subprocess.run(
        ("/bin/ps", "-o", "rss=", "-p", str(process.pid)), capture_output=True, timeout=1, check=True
    )
    return int(told.stdout) * 1024


READERS: dict[str, Callable[[subprocess.Popen[bytes]], int | None]] = {"linux": _linux}
"""Systems with a reader that needs no other program; every other one has ``ps``."""

if sys.platform == "win32":

    def _windows(process: subprocess.Popen[bytes]) -> int | None:
        """What the process has been given (the commit charge), which comes before it is touched."""
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS
            _fields_ = [
                ("cb", wintypes.DWORD),
                ("PageFaultCount", wintypes.DWORD),
                ("PeakWorkingSetSize", ctypes.c_size_t),
                ("WorkingSetSize", ctypes.c_size_t),
                ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
                ("QuotaPagedPoolUsage", ctypes.c_size_t),
                ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
                ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
                ("PagefileUsage", ctypes.c_size_t),
                ("PeakPagefileUsage", ctypes.c_size_t),
            ]

        counters = Counters(cb=ctypes.sizeof(Counters))
        ask = ctypes.windll.kernel32.K32GetProcessMemoryInfo
        ask.argtypes = (wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD)
        if not ask(int(process._handle), ctypes.byref(counters), counters.cb):
            return None
        return int(counters.PagefileUsage)

    READERS["win32"] = _windows
