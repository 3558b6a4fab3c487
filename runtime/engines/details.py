"""The struct that describes each target in a manifest, and the graphs that engines need of it."""

from __future__ import annotations

from .coreml.package import Package
from .executorch.flat import Flat

Details = Package | Flat
KINDS: dict[str, type[Details]] = {"coreml": Package, "executorch-flat": Flat}
"""By target, the struct that describes it; the others have none."""
GRAPHS: dict[str, tuple[str, ...]] = {
    "onnx": ("prologue", "block", "epilogue"),
    "native": (),  # one file, its weights
    "executorch": ("layout",),
    "coreml": ("model",),
}
"""The graphs that engines need of a target; it may have more."""
