"""Which tiny models the tests of Core ML export, and how they look into a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.coreml.blobs import Blobs
from edgeloop.runtime.engines.coreml.interpreter import WEIGHTS, read_model
from edgeloop.runtime.engines.coreml.package import Package

KINDS = {
    "edgeloop": "int4",  # deltas
    "edgeloop-no-lora": "int8",
    "edgeloop-shared": "int4",
    "edgeloop-window": "none",
    "mor-cycle": "int4",
    "mor-sequence": "int8",
    "mor-middle-cycle": "int4",  # layers before and after the loop
    "mor-lora": "none",
    "mor-norms": "int8-channel",
    "mor-shared": "int8",
    "mobilellm": "int4",  # no loop on the host
    "ouro": "int8-channel",  # a norm after every depth, a head of its own
    "llama": "none",
    "llama-window": "int4",
}
"""The quantization that each is exported with."""
PALETTIZED = ["edgeloop", "ouro"]


def package_of(bundle: Bundle) -> Path:
    return bundle.folder / bundle.manifest.targets["coreml"].details_as(Package).path


def palettes_of(package: Path) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """The indices [N, K] and tables [N/n, 16] of every matrix that a saved package stores so, of all its functions."""
    blobs, found = Blobs(package / WEIGHTS), dict[int, tuple[npt.NDArray[Any], npt.NDArray[Any]]]()
    for function in read_model(package).mlProgram.functions.values():
        for op in function.block_specializations["CoreML8"].operations:
            if op.type == "constexpr_lut_to_dense":
                values = [op.inputs[side].arguments[0].value for side in ("indices", "lut")]
                indices, tables = (blob(blobs, value) for value in values)
                found[values[0].blobFileValue.offset] = indices, tables[:, 0, :, 0]
    return list(found.values())


def blob(blobs: Blobs, value: Any) -> npt.NDArray[Any]:
    """The array of weight.bin that a value of the program is."""
    shape = tuple(d.constant.size for d in value.type.tensorType.dimensions)
    return blobs.read(value.blobFileValue.offset, shape)
