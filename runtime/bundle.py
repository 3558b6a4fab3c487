"""A bundle: the folder that ships. Opening one checks that it is whole before anything of it is used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import BundleError
from .manifest import Manifest, read_manifest
from .spec import Spec


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: ``folder`` (resolved) and its manifest."""

    folder: Path
    manifest: Manifest

    @staticmethod
    def open(folder: str | Path, verify: bool = True) -> Bundle:
        """Read the manifest of ``folder`` and check its files: names, sizes and, with ``verify``, SHA-256.

        BundleError names the first file that is missing or differs. Without ``verify`` no file but
        the manifest is read, so that opening a large bundle takes no time.
        """
        root = Path(folder)
        manifest = read_manifest(root)
        bundle = Bundle(root.resolve(), manifest)
        for name, file in manifest.files.items():
            path = bundle.path(name)
            if not path.is_file():
                raise BundleError(f"{root}: {name} is missing; copy the bundle again or export it again")
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
    def spec(self) -> Spec:
        """The model's architecture."""
        return self.manifest.spec

    def path(self, name: str) -> Path:
        """The path of the file that the manifest lists as ``name``.

        BundleError when it is not listed, or leads out of the folder: bundles come from other people.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder}: {name!r} is not listed in the manifest; export it again")
        # A backslash or a colon is a plain character here and a separator or a drive on Windows.
        plain = PurePosixPath(name)
        if not name or plain.is_absolute() or ".." in plain.parts or any(c in name for c in "\\:\0"):
            raise BundleError(f"{self.folder}: file name {name!r} is not a plain path inside the bundle")
        path = (self.folder / plain).resolve()
        if not path.is_relative_to(self.folder) or path == self.folder:
            raise BundleError(f"{self.folder}: {name!r} leads out of the bundle to {path}; copy that file")
        return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named_files(manifest: Manifest) -> list[str]:
    """Every file that some other part of the manifest refers to."""
    names = [name for name in (manifest.text.tokenizer, manifest.heads) if name]
    for target in manifest.targets.values():
        names += [*target.graphs.values(), target.weights]
    return names
