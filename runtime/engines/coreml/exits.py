"""The exit rules in a Core ML package's own metadata, because a Swift host reads nothing else."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from ...bundle.manifest import Exit

EXITS = "edgeloop.exits"


def exit_metadata(heads: Mapping[str, npt.NDArray[np.float32]], exits: Mapping[str, Exit]) -> dict[str, str]:
    """Return the calibrated rules, and the heads that rules read: float32 numbers, little-endian, in base64."""
    arrays = {
        name: {
            "shape": list(array.shape),
            "data": b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode(),
        }
        for name, array in heads.items()
    }
    rules = {
        name: {"thresholds": rule.thresholds, "missing": rule.skipped_kv} for name, rule in exits.items()
    }
    return {EXITS: msgspec.json.encode({"rules": rules, "heads": arrays}).decode()}
