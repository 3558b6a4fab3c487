"""Every byte of a bundle is accounted for by its manifest, or named with its place: there is no room for more.

What the numbers of the weights mean, and what the operators of a graph compute, is not judged here; an account says
how many bytes of a file are which kind, and which kind is opaque.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..bundle.folder import Bundle
from ..bundle.manifest import MANIFEST, Manifest
from ..engines.coreml.package import Package
from . import graphs, lanes, packages, programs, tensors, texts
from .ledger import Account, Data, Finding, Ledger

__all__ = ["Account", "Audit", "Finding", "audit"]

Accountant = Callable[[Bundle, Ledger], None]
OPAQUE = "opaque"
"""Ends the names of kinds whose insides are not looked into."""

PROGRAM: dict[str, Accountant] = {
    "pte": programs.program,
    "ptd": programs.data,
    "bin": programs.embedding,
    "json": texts.layout,
}
"""By the ends of the names of an ExecuTorch target's files."""


@dataclass(frozen=True)
class Audit:
    """What is in a bundle, file by file."""

    folder: Path
    files: tuple[Account, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Bytes that nothing accounts for."""
        return tuple(finding for file in self.files for finding in file.findings)


def audit(folder: str | Path) -> Audit:
    """Account for every byte of the bundle ``folder``; BundleError when it is damaged."""
    bundle = Bundle.open(folder)
    roles = _roles(bundle.manifest)
    ledger = Ledger(MANIFEST, (bundle.folder / MANIFEST).read_bytes())
    texts.manifest(ledger)
    files = [ledger.close()]
    for name in sorted(bundle.manifest.files):
        ledger = Ledger(name, _data(bundle.path(name)))
        if name in roles:
            roles[name](bundle, ledger)
        else:
            ledger.refuse(0, ledger.size, "no part of the bundle uses this file")
        files.append(ledger.close())
    return Audit(bundle.folder, (*files, *_strangers(bundle)))


def _roles(manifest: Manifest) -> dict[str, Accountant]:
    """Who accounts for which file, by what the manifest says that it is."""
    roles: dict[str, Accountant] = {}
    if manifest.text.tokenizer:
        roles[manifest.text.tokenizer] = texts.tokenizer
    if manifest.heads:
        roles[manifest.heads] = tensors.heads
    for kind, target in manifest.targets.items():
        names = (*target.graphs.values(), target.weights)
        if isinstance(target.details, Package):
            roles[f"{target.details.path}/Manifest.json"] = packages.listing
            roles[target.graphs["model"]] = packages.model
            roles[target.weights] = packages.weights
        elif kind.startswith("executorch"):
            roles |= {n: PROGRAM[end] for n in names if (end := n.rpartition(".")[2]) in PROGRAM}
        elif kind == "native":
            roles[target.weights] = lanes.lanes
        elif kind == "onnx":
            roles |= dict.fromkeys(target.graphs.values(), graphs.graph)
            roles[target.weights] = tensors.weights
    return roles


def _strangers(bundle: Bundle) -> list[Account]:
    """Files, links and pipes of the folder that the manifest does not name."""
    found = []
    for path in sorted(bundle.folder.rglob("*")):
        name = path.relative_to(bundle.folder).as_posix()
        if name == MANIFEST or name in bundle.manifest.files or (path.is_dir() and not path.is_symlink()):
            continue
        size = path.lstat().st_size
        finding = Finding(name, 0, size, "the manifest does not name this file")
        found.append(Account(name, size, {}, (finding,)))
    return found


def _data(path: Path) -> Data:
    """The bytes of a file, mapped: weights are as large as they are."""
    if not path.stat().st_size:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
