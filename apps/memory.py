"""Memory that is not there: numpy, torch, onnxruntime and the system each say it in their own way; here in one line.

Little is imported: there may be no memory for more.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from .machine import free_memory_bytes, memory_bytes, memory_limit_bytes

_SAID = re.compile(
    r"allocate (?P<bytes>\d+) bytes"  # torch, "you tried to"
    r"|buffer of size (?P<size>\d+)"  # onnxruntime's arena
    r"|Unable to allocate (?P<number>[\d.]+) (?P<unit>[KMGTPE]?iB|bytes)"  # numpy
    r"|bad[_ ]alloc|MemoryAllocationFailed|Cannot allocate memory|failed to allocate",
    re.IGNORECASE,
)
_UNITS = {
    "bytes": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "pib": 1 << 50,
    "eib": 1 << 60,
}


def memory_line(error: BaseException) -> str | None:
    """The line that stands for ``error`` where memory was what failed, also behind it; else None."""
    for each in _chain(error):
        found = [_wanted(match) for match in _SAID.finditer(str(each))]
        out = isinstance(each, MemoryError) or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        if out or found:
            return _line(max(found, default=0))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and those that it was raised from, or while they were handled."""
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        yield step
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)


def _wanted(found: re.Match[str]) -> float:
    """Bytes; 0 where it does not say."""
    if plain := found["bytes"] or found["size"]:
        return int(plain)
    return float(found["number"]) * _UNITS[found["unit"].lower()] if found["number"] else 0


def _line(wanted: float) -> str:
    what = f"{_size(wanted)} more were wanted" if wanted else "more was wanted"
    sizes = [
        f"{text} {_size(size)}"
        for text, size in (
            ("this computer has", memory_bytes()),
            ("free are", free_memory_bytes()),
            ("this process may have", memory_limit_bytes()),
        )
        if size is not None
    ]
    found = f" ({', '.join(sizes)})" if sizes else ""
    return f"out of memory: {what}{found}; close other programs, or ask for less: a smaller --context, model or --quant"


def _size(number: float) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e8 else f"{number / 1e6:.3g} MB"
