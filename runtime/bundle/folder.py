"""A bundle: the folder that ships. Opening one checks that it is whole before anything in it is used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..errors import BundleError, UsageError
from ..model.codec import GroupSizes
from ..model.program import Program
from ..model.transform import with_depths
from .manifest import MANIFEST, Manifest, read_manifest
from .signature import TrustedKey, check_signature, trusted


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: ``folder`` (resolved) and its manifest. ``deeper``: its model at another number of depths."""

    folder: Path
    manifest: Manifest
    deeper: Program | None = None

    @staticmethod
    def open(folder: str | Path, verify: bool = True, trust: str | Path | TrustedKey | None = None) -> Bundle:
        """Read the manifest of ``folder`` and check its files: names, sizes and, with ``verify``, SHA-256.

        BundleError names the first file that is missing or differs. Without ``verify`` no file but the manifest
        is read, so that opening a large bundle takes no time. That is for files that this process or its user
        has checked or made: engines find a damaged table of a graph, but damaged weights are other weights, and
        a program that was changed on purpose can end the process or worse.

        ``trust``: an Ed25519 public key, or the PEM file of one: BundleError unless it signed the bundle
        (``signature.py``), of which nothing but the manifest is read before that is known.
        """
        root = Path(folder)
        if trust is not None and not verify:
            raise UsageError("a signature is of hashes: with trust they are verified; leave verify as it is")
        manifest = read_manifest(root)
        if trust is not None:
            check_signature(root, manifest, sha256_of(root / MANIFEST), trusted(trust))
        bundle = Bundle(root.resolve(), manifest)
        for name, file in manifest.files.items():
            path = bundle.path(name)
            if not path.is_file():
                found = "no plain file" if path.exists() else "missing"
                raise BundleError(f"{root}: {name} is {found}; copy the bundle again or export it again")
            size = path.stat().st_size
            if size != file.bytes:
                raise BundleError(
                    f"{root}: {name} has {size} bytes, the manifest says {file.bytes}; copy the bundle again"
                )
            if verify and (found := sha256_of(path)) != file.sha256:
                raise BundleError(
                    f"{root}: {name} has SHA-256 {found[:12]}…, the manifest says {file.sha256[:12]}…; "
                    "it is damaged or was changed: copy the bundle again"
                )
        for name in _named_files(manifest):
            bundle.path(name)
        return bundle

    @property
    def program(self) -> Program:
        """The model's architecture, as it is run."""
        return self.deeper or self.manifest.program

    def at_depth(self, depths: int | None) -> Bundle:
        """Return this bundle with a loop that runs ``depths`` times; None: as often as it was exported for.

        UsageError where the model has no other number of depths.
        """
        if depths is None:
            return self
        return replace(self, deeper=with_depths(self.manifest.program, depths))

    @property
    def group_sizes(self) -> GroupSizes:
        """The group size of each matrix's codes."""
        said = self.manifest.quantization
        if not said.others:
            return said.group_size
        return {name: said.storage(name).group_size for name in self.manifest.program.weights}

    @property
    def own_depth(self) -> bool:
        """Whether the loop runs as often as the bundle was exported for."""
        return self.program.depths == self.manifest.program.depths

    def path(self, name: str) -> Path:
        """Return the path of the file that the manifest lists as ``name``; every file of a bundle is found by this.

        BundleError when it is not listed, or leads out of the folder: bundles come from other people. A link
        may lead to another file of the bundle, and in the Hugging Face cache to any of the same repository. The
        path is that of the link: files that find each other by their names still do.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder}: {name!r} is not listed in the manifest; export it again")
        if not is_plain(name):
            raise BundleError(f"{self.folder}: file name {name!r} is not a plain path inside the bundle")
        path = self.folder / name
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # links in a circle
            raise BundleError(f"{self.folder}: {name!r} leads nowhere; copy the bundle again") from error
        if not any(real.is_relative_to(root) for root in (self.folder, *_repository(self.folder))):
            raise BundleError(
                f"{self.folder}: {name!r} is a link that leads out of the bundle to {real}; put the file itself there "
                "(cp -L)"
            )
        return path

    def beside(self, name: str, other: str) -> Path:
        """Return the path of the listed file that the file ``name`` calls ``other``, relative to its own folder."""
        if PurePosixPath(other).is_absolute():
            raise BundleError(
                f"{self.folder}: {name} names {other!r}, wanted a file of the bundle; export it again"
            )
        return self.path((PurePosixPath(name).parent / other).as_posix())

    def package(self, name: str) -> Path:
        """Return the folder ``name``, which an engine opens as a whole; BundleError unless all its files are listed."""
        inside = [listed for listed in self.manifest.files if listed.startswith(f"{name}/")]
        if not name or not inside:
            raise BundleError(
                f"{self.folder}: no file of {name!r} is listed in the manifest; export it again"
            )
        folder = self.folder / name
        wanted = {self.path(listed) for listed in inside}
        for path in folder.rglob("*"):
            if path not in wanted and (path.is_symlink() or not path.is_dir()):
                stranger = path.relative_to(self.folder).as_posix()
                raise BundleError(
                    f"{self.folder}: {stranger} is not listed in the manifest; move it away or copy the bundle again"
                )
        return folder


def is_plain(name: str) -> bool:
    """Whether ``name`` is a path with / that stays in the folder that it is in, on every system."""
    # A backslash or a colon is a plain character here and a separator or a drive on Windows.
    plain = PurePosixPath(name)
    strange = plain.is_absolute() or ".." in plain.parts or any(c in name for c in "\\:\0")
    return name not in ("", ".") and not strange and plain.as_posix() == name


def _repository(folder: Path) -> list[Path]:
    """Return the folders of the Hugging Face cache's repository that ``folder`` is a snapshot of; none elsewhere.

    The cache's layout is models--WHO--NAME/snapshots/REVISION, whose files are links into models--WHO--NAME/blobs.
    """
    return [
        parent.parent
        for parent in folder.parents
        if parent.name == "snapshots"
        and parent.parent.name.startswith(("models--", "datasets--", "spaces--"))
    ]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named_files(manifest: Manifest) -> list[str]:
    """Return every file that some other part of the manifest refers to."""
    names = [name for name in (manifest.text.tokenizer, manifest.text.lanes, manifest.heads) if name]
    for target in manifest.targets.values():
        names += [*target.graphs.values(), target.weights]
    return names
