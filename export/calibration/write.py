"""Calibrated exits and fitted probes, written into a bundle: new files first, the manifest last.

A Core ML package says them again in its own metadata, because a Swift host reads nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import structs
from safetensors.numpy import save

from ...runtime.bundle import Bundle, sha256_of
from ...runtime.heads import HEADS, read_heads
from ...runtime.manifest import MANIFEST, Exit, File, Manifest, write_manifest
from ..coreml.metadata import exit_metadata, with_metadata

F32 = npt.NDArray[np.float32]


def write_probes(folder: Path, weight: F32, bias: F32) -> None:
    """Put probes [R−1, D], [R−1] beside the heads that the bundle has. BundleError when it is damaged.

    Thresholds that were calibrated for other probes go: they mean nothing for these.
    """
    bundle = Bundle.open(folder, verify=False)
    heads = {**read_heads(bundle), "probe.weight": weight, "probe.bias": bias}
    # The old manifest names the old file's hash, so the new file gets another name until the manifest follows.
    name = HEADS if bundle.manifest.heads != HEADS else f"probed.{HEADS}"
    temporary = folder / f".{name}.new"
    temporary.write_bytes(
        save({key: np.ascontiguousarray(value, np.float32) for key, value in heads.items()})
    )
    file = File(temporary.stat().st_size, sha256_of(temporary))
    os.replace(temporary, folder / name)
    old = bundle.manifest.heads
    files = {key: value for key, value in bundle.manifest.files.items() if key != old}
    exits = {key: value for key, value in bundle.manifest.exits.items() if key != "probe"}
    manifest = structs.replace(bundle.manifest, heads=name, exits=exits, files={**files, name: file})
    _replace(folder, manifest)
    if old is not None and old != name:
        (folder / old).unlink(missing_ok=True)


def write_exits(folder: Path, exits: Mapping[str, Exit]) -> None:
    """Add or replace calibrated exit rules."""
    manifest = Bundle.open(folder, verify=False).manifest
    _replace(folder, structs.replace(manifest, exits={**manifest.exits, **exits}))


def _replace(folder: Path, manifest: Manifest) -> None:
    """The manifest, and packages' metadata with it. A package's file has one name, so it and the manifest are renamed
    one right after the other: a bundle that was interrupted just between them is refused as damaged."""
    scratch = folder / ".manifest.new"
    scratch.mkdir(exist_ok=True)
    files = dict(manifest.files)
    models = [t.graphs["model"] for t in manifest.targets.values() if t.package is not None]
    if models:
        bundle = Bundle(folder.resolve(), manifest)
        values = exit_metadata(read_heads(bundle), manifest.exits)
        for number, name in enumerate(models):
            new = scratch / str(number)
            new.write_bytes(with_metadata(bundle.path(name).read_bytes(), values))
            files[name] = File(new.stat().st_size, sha256_of(new))
    write_manifest(scratch, structs.replace(manifest, files=files))
    for number, name in enumerate(models):
        os.replace(scratch / str(number), folder / name)
    os.replace(scratch / MANIFEST, folder / MANIFEST)
    scratch.rmdir()
