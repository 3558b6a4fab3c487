"""Accounts for every byte of a bundle by its manifest, and names those that it does not account for, with their place.

What the numbers of the weights mean, and what the operators of a graph compute, is not judged here; an account says how
many bytes of a file are of which kind, and which kind is opaque.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..bundle.folder import Bundle, sha256_of
from ..bundle.manifest import MANIFEST, Manifest
from ..bundle.signature import SIGNATURE, SIGNATURES, SUMS, sums
from ..engines.coreml.package import Package
from . import graphs, lanes, packages, programs, tensors, texts
from .ledger import Account, Data, Finding, Ledger

__all__ = ["Account", "Audit", "Finding", "audit"]

Accountant = Callable[[Bundle, Ledger], None]
OPAQUE = "opaque"
"""The end of the names of kinds whose content is not examined."""

PROGRAM: dict[str, Accountant] = {
    "pte": programs.program,
    "ptd": programs.data,
    "bin": programs.embedding,
    "json": texts.layout,
}
"""The accountants of an ExecuTorch target's files, by the ends of their names."""


@dataclass(frozen=True)
class Audit:
    """The accounts of a bundle's files."""

    folder: Path
    files: tuple[Account, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The bytes that nothing accounts for."""
        return tuple(finding for file in self.files for finding in file.findings)


def audit(folder: str | Path) -> Audit:
    """Return the account of every file of the bundle ``folder``; BundleError when it is damaged."""
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
    return Audit(bundle.folder, (*files, *_signatures(bundle), *_unlisted(bundle)))


def _roles(manifest: Manifest) -> dict[str, Accountant]:
    """Return the accountant of each file, by what the manifest says that it is."""
    roles: dict[str, Accountant] = {}
    if manifest.text.tokenizer:
        roles[manifest.text.tokenizer] = texts.tokenizer
    if manifest.text.lanes:
        roles[manifest.text.lanes] = lanes.text
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


def _signatures(bundle: Bundle) -> list[Account]:
    """Return the accounts of a signed bundle's two files; whose signature it is, is not judged here."""
    found = []
    for name in SIGNATURES:
        if not (path := bundle.folder / name).is_file() or path.is_symlink():
            continue
        ledger = Ledger(name, _data(path))
        wanted = sums(bundle.manifest, sha256_of(bundle.folder / MANIFEST))
        if name == SUMS and bytes(ledger.data[:]) == wanted:
            ledger.take(0, ledger.size, "hashes")
        elif name == SIGNATURE and ledger.size == 64:
            ledger.take(0, ledger.size, f"signature, {OPAQUE}")
        else:
            ledger.refuse(0, ledger.size, "not what is signed of this bundle")
        found.append(ledger.close())
    return found


def _unlisted(bundle: Bundle) -> list[Account]:
    """Return the accounts of files, links and pipes of the folder that the manifest does not name."""
    found = []
    for path in sorted(bundle.folder.rglob("*")):
        name = path.relative_to(bundle.folder).as_posix()
        if name in (MANIFEST, *SIGNATURES) and not path.is_symlink():
            continue
        if name in bundle.manifest.files or (path.is_dir() and not path.is_symlink()):
            continue
        size = path.lstat().st_size
        finding = Finding(name, 0, size, "the manifest does not name this file")
        found.append(Account(name, size, {}, (finding,)))
    return found


def _data(path: Path) -> Data:
    """Return the bytes of a file, mapped: weights may be larger than memory."""
    if not path.stat().st_size:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
