"""Reading a checkpoint folder, and changing one, for the families' tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import yaml
from safetensors.torch import load_file, save_file

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family
from edgeloop.export.family import Reading
from edgeloop.runtime.bundle.folder import sha256_of
from edgeloop.runtime.bundle.manifest import File, read_manifest, write_manifest


def read(folder: Path) -> Reading:
    checkpoint = Checkpoint.open(folder)
    return find_family(checkpoint).read(checkpoint)


def edit(path: Path, **changes: Any) -> None:
    """Change top-level keys of a JSON or YAML file; dotted keys reach into sections."""
    text = path.read_text()
    value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    for key, new in changes.items():
        *sections, last = key.split("__")
        table = value
        for section in sections:
            table = table[section]
        table[last] = new
    path.write_text(json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    if (folder / "model.safetensors").exists():
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
    else:
        tensors = dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
        change(tensors)
        torch.save(tensors, folder / "pytorch_model.bin")


def louder(weights: dict[str, torch.Tensor]) -> None:
    """Make the demo model's random matrices larger, or it says nearly the same of every token."""
    for name, weight in weights.items():
        if name.endswith(("proj.weight", "embed_tokens.weight")):
            weight *= 6


def relist(folder: Path, *names: str) -> None:
    """Give the manifest of a bundle the sizes and hashes that its files ``names`` have now."""
    manifest = read_manifest(folder)
    files = {name: File((folder / name).stat().st_size, sha256_of(folder / name)) for name in names}
    write_manifest(folder, msgspec.structs.replace(manifest, files={**manifest.files, **files}))
