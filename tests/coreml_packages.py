"""Which tiny models the tests of Core ML export, and how they look into a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.coreml.blobs import Blobs
from edgeloop.runtime.engines.coreml.interpreter import WEIGHTS, read_model
from edgeloop.runtime.engines.coreml.package import Package

Array = npt.NDArray[Any]
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


def palettes_of(package: Path) -> list[tuple[Array, Array]]:
    """The indices [N, K] and tables [N/n, 16] of every matrix that a saved package stores so, of all its functions."""
    pairs = constants_of(package, "constexpr_lut_to_dense", "indices", "lut")
    return [(indices, tables[:, 0, :, 0]) for indices, tables in pairs]


def codes_of(package: Path) -> list[tuple[Array, Array]]:
    """The codes around zero [N, ⌈K/G⌉·G] and scales [N, ⌈K/G⌉] of every matrix that a saved package stores so, or of
    some rows of it, of all its functions."""
    return [(c, s) for c, s in constants_of(package, "constexpr_blockwise_shift_scale", "data", "scale")]


def floats_of(package: Path) -> list[Array]:
    """The float16 arrays of a saved package that are in its weight.bin and no part of a matrix of codes or tables."""
    return [array for (array,) in constants_of(package, "const", "val") if array.dtype == np.float16]


def rows_held(pairs: list[tuple[Array, Array]], codes: Array, scales: Array) -> Array:
    """Which rows [N] of codes around zero [N, ⌈K/G⌉·G] ``pairs`` have, with these ``scales``: they may be in pieces."""
    held = np.zeros(len(codes), bool)
    for some, theirs in pairs:
        first, rest = divmod(codes.tobytes().find(some.astype(codes.dtype).tobytes()), codes.shape[1])
        if first >= 0 and not rest and some.shape[1] == codes.shape[1]:
            rows = slice(first, first + len(some))
            np.testing.assert_array_equal(theirs, scales[rows])
            held[rows] = True
    return held


def constants_of(package: Path, kind: str, *sides: str) -> list[list[Array]]:
    """The arrays ``sides`` of every operation ``kind`` that has them in weight.bin, each once, of all functions."""
    blobs, found = Blobs(package / WEIGHTS), dict[int, list[Array]]()
    for function in read_model(package).mlProgram.functions.values():
        for op in function.block_specializations["CoreML8"].operations:
            if op.type == kind:
                values = [
                    op.attributes[side] if side in op.attributes else op.inputs[side].arguments[0].value
                    for side in sides
                ]
                if values[0].WhichOneof("value") == "blobFileValue":
                    found[values[0].blobFileValue.offset] = [blob(blobs, value) for value in values]
    return list(found.values())


def blob(blobs: Blobs, value: Any) -> Array:
    """The array of weight.bin that a value of the program is."""
    shape = tuple(d.constant.size for d in value.type.tensorType.dimensions)
    return blobs.read(value.blobFileValue.offset, shape)
