"""What the targets say of themselves in a manifest, and the graphs that engines ask them for, by name."""

from __future__ import annotations

from .coreml.package import Package
from .executorch.flat import Flat

Details = Package | Flat
KINDS: dict[str, type[Details]] = {"coreml": Package, "executorch-flat": Flat}
"""Of the targets that say something; the others say nothing."""
GRAPHS: dict[str, tuple[str, ...]] = {
    "onnx": ("prologue", "block", "epilogue"),
    "native": (),  # one file, its weights
    "executorch": ("layout",),
    "coreml": ("model",),
}
"""The graphs that engines ask a target for; it may have more."""
