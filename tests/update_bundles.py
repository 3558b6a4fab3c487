"""Two bundles of one model, small and quick to make: the stored one, and the same with other numbers in tensors."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

STORED = Path(__file__).parent / "fixtures" / "bundles" / "format-4"
CHANGED = ("norm", "lora")
"""Parts of the names of tensors that the new bundle has others of."""


def old_bundle(folder: Path) -> Path:
    """The stored bundle."""
    shutil.copytree(STORED, folder)
    return folder


def new_bundle(folder: Path, more: bytes = b"") -> Path:
    """The same with other numbers, and without a file that nothing names; ``more`` is added to its tokenizer."""
    old_bundle(folder)
    weights = folder / "onnx" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for name, about in json.loads(data[8:start]).items():
        if any(part in name for part in CHANGED):
            first, end = (start + at for at in about["data_offsets"])
            data[first:end] = bytes(byte ^ 1 for byte in data[first:end])
    weights.write_bytes(bytes(data))
    if more:
        (folder / "more.bin").write_bytes(more)
    return listed(folder)


def listed(folder: Path) -> Path:
    """Write sizes and hashes of the files that are there into the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
