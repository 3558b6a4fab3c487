"""Writes calibrated exits and fitted probes into a bundle, which is the old or the new one at any moment.

A Core ML package gets them in its own metadata too, and so does the lane engine's file: hosts in Swift and in C read
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import structs
from safetensors.numpy import save

from ...runtime.bundle.folder import Bundle, sha256_of
from ...runtime.bundle.heads import HEADS, read_heads
from ...runtime.bundle.manifest import Exit, File, Manifest, write_manifest
from ...runtime.engines.coreml.exits import exit_metadata
from ...runtime.engines.coreml.package import Package
from ..bundle.writer import edited, put
from ..targets.coreml.metadata import with_metadata
from ..targets.native.app_tables import replace_exits
from ..targets.native.target import NativeTarget

F32 = npt.NDArray[np.float32]


def write_probes(bundle: Path, weight: F32, bias: F32) -> None:
    """Write probes [R−1, D], [R−1] beside the heads that the bundle has. BundleError when it is damaged.

    Thresholds that were calibrated for other probes are removed.
    """
    with edited(bundle) as folder:
        opened = Bundle.open(folder, verify=False)
        heads = {**read_heads(opened), "probe.weight": weight, "probe.bias": bias}
        name = opened.manifest.heads or HEADS
        put(
            folder / name,
            save({key: np.ascontiguousarray(value, np.float32) for key, value in heads.items()}),
        )
        exits = {key: value for key, value in opened.manifest.exits.items() if key != "probe"}
        _write(folder, structs.replace(opened.manifest, heads=name, exits=exits), name)


def write_exits(bundle: Path, exits: Mapping[str, Exit]) -> None:
    """Add or replace calibrated exit rules. BundleError when the bundle is damaged."""
    with edited(bundle) as folder:
        manifest = Bundle.open(folder, verify=False).manifest
        _write(folder, structs.replace(manifest, exits={**manifest.exits, **exits}))


def _write(folder: Path, manifest: Manifest, *changed: str) -> None:
    """Write the manifest of an edited folder of which the files ``changed`` are new, and packages' metadata with it."""
    files = dict(manifest.files)
    for name in changed:
        files[name] = File((folder / name).stat().st_size, sha256_of(folder / name))
    bundle = Bundle(folder, structs.replace(manifest, files=files))
    for kind, target in manifest.targets.items():
        if kind == NativeTarget.name:
            path = bundle.path(target.weights)
            replace_exits(path, manifest.program, read_heads(bundle), manifest.exits)
            files[target.weights] = File(path.stat().st_size, sha256_of(path))
        if isinstance(target.details, Package):
            path = bundle.path(target.graphs["model"])
            put(path, with_metadata(path.read_bytes(), exit_metadata(read_heads(bundle), manifest.exits)))
            files[target.graphs["model"]] = File(path.stat().st_size, sha256_of(path))
    write_manifest(folder, structs.replace(manifest, files=files))
