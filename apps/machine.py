"""What this computer offers: processor features, threads and memory."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

# Instructions that the engines' kernels look for, by the names that the kernel reports them under.
FEATURES = (
    ("avx2", "AVX2"),
    ("avx_vnni", "AVX-VNNI"),
    ("avx512f", "AVX-512"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("amx_int8", "AMX int8"),
    ("asimd", "NEON"),
    ("asimdhp", "fp16"),
    ("asimddp", "dot product"),
    ("i8mm", "I8MM"),
    ("bf16", "BF16"),
    ("sve", "SVE"),
    ("sve2", "SVE2"),
    ("sme", "SME"),
)

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def processor() -> str:
    """The processor's name, as far as the system tells."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    if sys.platform != "linux":
        return platform.processor() or platform.machine()
    return processor_in(_read("/proc/cpuinfo"), platform.machine())


def processor_in(cpuinfo: str, machine: str) -> str:
    """The name in the lines of a Linux's /proc/cpuinfo; ``machine``, the processor's kind, where there is none."""
    for key in ("model name", "Model", "Hardware"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        if found:
            return f"{found[1].strip()} ({machine})"
    return machine


def processor_features() -> list[str]:
    """Which of ``FEATURES`` the processor has."""
    if sys.platform == "darwin":
        words = set(_sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features").lower().split())
        if platform.machine() == "arm64":
            words |= {"asimd", "asimdhp", "asimddp"}  # every Apple processor of that kind
        return [name for flag, name in FEATURES if flag in words]
    return features_in(_read("/proc/cpuinfo"))


def features_in(cpuinfo: str) -> list[str]:
    """Which of ``FEATURES`` the lines of a Linux's /proc/cpuinfo have."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    words = set(found[1].split()) if found else set()
    return [name for flag, name in FEATURES if flag in words]


def usable_threads() -> int:
    """Processors that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """The computer's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def free_memory_bytes() -> int | None:
    """Memory that programs could still have, None where the system does not say."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def last_cache_bytes() -> int | None:
    """Return the size of the largest cache of the first processor; None where the system does not say."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        try:
            found = re.fullmatch(r"(\d+)([KM])", path.read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            continue
        if found:
            sizes.append(int(found[1]) << {"K": 10, "M": 20}[found[2]])
    if sizes:
        return max(sizes)
    try:  # where the C library knows; macOS has no such name
        return max(os.sysconf(name) for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE")) or None
    except (ValueError, OSError, AttributeError):
        return None


def memory_limit_bytes() -> int | None:
    """What this process may have of it (``ulimit -v``), None where it may have all."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(*names: str) -> str:
    try:
        result = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip()
