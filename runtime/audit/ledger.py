"""Records which bytes of a file are accounted for, and by what; the rest is found by subtraction."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace

Data = bytes | mmap.mmap


@dataclass(frozen=True)
class Finding:
    """``bytes`` bytes at ``start`` of ``file`` that nothing accounts for."""

    file: str
    start: int
    bytes: int
    what: str


@dataclass(frozen=True)
class Account:
    """A file of ``bytes`` bytes: how many are of each kind, and the findings."""

    file: str
    bytes: int
    kinds: dict[str, int]
    findings: tuple[Finding, ...]


class Ledger:
    """The record that an accountant keeps of one file."""

    def __init__(self, file: str, data: Data) -> None:
        self.file, self.data, self.size = file, data, len(data)
        self._spans: list[tuple[int, int, str]] = []
        self._findings: list[Finding] = []

    def take(self, start: int, end: int, kind: str) -> None:
        """Record that the bytes ``start`` … ``end`` are of that kind. Bytes that were taken before keep their kind."""
        if start < end:
            self._spans.append((start, end, kind))

    def refuse(self, start: int, end: int, what: str) -> None:
        """Record that the bytes ``start`` … ``end`` should not be there."""
        start, end = max(0, min(start, self.size)), min(end, self.size)
        self._findings.append(Finding(self.file, start, max(0, end - start), what))
        self.take(start, end, "")

    def padding(self, start: int, end: int) -> None:
        """Record that the bytes ``start`` … ``end`` are padding; they are refused unless they are zeros."""
        if start < end:
            if self.data[start:end].strip(b"\0"):
                self.refuse(start, end, "padding that is not zero")
            else:
                self.take(start, end, "padding")

    def adopt(self, other: Ledger) -> None:
        """Add the records of ``other``, which are of the same bytes."""
        self._spans += other._spans
        self._findings += (replace(finding, file=self.file) for finding in other._findings)

    def gaps(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        """Return the parts of ``start`` … ``end`` that were not taken."""
        at, end = start, self.size if end is None else end
        found = []
        for first, last, _ in sorted(self._spans):
            if first >= end:
                break
            if first > at:
                found.append((at, first))
            at = max(at, last)
        if at < end:
            found.append((at, end))
        return found

    def close(self) -> Account:
        """Return the account; bytes that were not taken become findings."""
        for start, end in self.gaps():
            self.refuse(start, end, "nothing in the file refers to it")
        kinds: dict[str, int] = {}
        at = 0
        for start, end, kind in sorted(self._spans):
            if end > at and kind:
                kinds[kind] = kinds.get(kind, 0) + end - max(at, start)
            at = max(at, end)
        found = sorted(self._findings, key=lambda finding: finding.start)
        return Account(self.file, self.size, dict(sorted(kinds.items())), tuple(found))
