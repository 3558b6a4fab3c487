"""A folder of fitted codes, to be exported in place of rounding: numbers, their recipe, and of which weights they are.

codes.json says how the matrices are stored and the SHA-256 of each as float32, so that codes are never put in place of
other weights; codes.safetensors holds ``NAME.codes`` and ``NAME.scales``, or ``NAME.indices`` and ``NAME.tables``, as a
bundle does. Norms, biases and deltas that were trained with them lie there as float32, by their full names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from ..quant.recipe import FLOAT16, FLOAT32, GROUP_SIZES, INT8, TABLES, Recipe, StorageFormat
from ..runtime.bundle.folder import sha256_of
from ..runtime.bundle.json_text import json_text
from ..runtime.bundle.manifest import BITS
from ..runtime.engines.backend import I64
from ..runtime.errors import BundleError, CheckpointError
from ..runtime.model.codec import ENTRIES, F32, Grouped, Palette, code_shape, rows_of_table
from ..runtime.model.stored import Array, map_tensors
from ..runtime.model.weights import Matrix, Tensor, tensors
from ..runtime.version import VERSION
from .family import Reading
from .stored import Coded, Fitted, pieces, sides
from .weights import WeightsWriter

FORMAT = 2
ABOUT, NUMBERS = "codes.json", "codes.safetensors"
MOST_BYTES = 16 << 20
"""Of codes.json; a real one has some thousands."""


class About(Struct, frozen=True, forbid_unknown_fields=True):
    """codes.json. ``text``: the SHA-256 of the ``tokens`` ids that the codes are fitted to, int64 little-endian.

    ``matrices``: by name, the SHA-256 of what was quantized, [N, K] float32 little-endian; ``floats``: that of what was
    there before ``steps`` of training, of each stored tensor that training changed. ``numbers``: that of
    codes.safetensors.
    """

    format: int
    edgeloop: str
    recipe: Recipe
    tokens: int
    text: str
    matrices: dict[str, str]
    steps: int
    floats: dict[str, str]
    numbers: str


@dataclass(frozen=True)
class Codes:
    """An opened folder of codes."""

    folder: Path
    about: About
    stored: Mapping[str, Array]

    @property
    def recipe(self) -> Recipe:
        """How the matrices are stored."""
        return self.about.recipe

    @staticmethod
    def open(folder: Path) -> Codes:
        """Return what ``folder`` holds; CheckpointError, one line, where it is damaged or something else."""
        path = folder / ABOUT
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise CheckpointError(f"{path} has more than {MOST_BYTES} bytes; make the codes again")
            about = msgspec.json.decode(data, type=About)
            if about.format != FORMAT:
                raise CheckpointError(
                    f"{path} is of format {about.format}, wanted {FORMAT}; make the codes again with this edgeloop"
                )
            check_recipe(about.recipe, path)
            if sha256_of(folder / NUMBERS) != about.numbers:
                raise CheckpointError(
                    f"{folder / NUMBERS} is damaged: its hash is not the one in {ABOUT}; make the codes again"
                )
            return Codes(folder, about, map_tensors(folder / NUMBERS))
        except OSError as error:
            raise CheckpointError(
                f"{path.parent} cannot be read ({error.strerror}); give a folder that edgeloop quantize wrote"
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BundleError) as error:
            raise CheckpointError(
                f"{path.parent} is no folder of codes: {error}; edgeloop quantize writes one"
            ) from error

    def of(self, reading: Reading) -> Fitted:
        """Return the codes by matrix, and the floats that were trained; CheckpointError where they are of other weights
        than those of ``reading``."""
        wanted = coded(reading, self.recipe)
        if self.about.matrices.keys() != wanted.keys():
            name = min(self.about.matrices.keys() ^ wanted.keys())
            where = "no codes there" if name in wanted else "codes there, and is no matrix of the model"
            raise CheckpointError(
                f"{self.folder} is of another model: {name} has {where}; make the codes again"
            )
        trained = trainable(reading, self.recipe)
        if self.about.floats and self.about.floats.keys() != trained.keys():
            name = min(self.about.floats.keys() ^ trained.keys())
            raise CheckpointError(
                f"{self.folder} is of another model: {name} is not trained in both; make the codes again"
            )
        known = {f"{name}.weight": digest for name, digest in self.about.matrices.items()} | self.about.floats
        for full, digest in hashes(reading, known):
            if digest != known[full]:
                raise CheckpointError(
                    f"{self.folder} is of other weights: {full.removesuffix('.weight')} has changed since; make the "
                    "codes again"
                )
        formats = self.recipe.formats(wanted)
        found: dict[str, Coded | F32] = {
            name: read_coded(self.stored, name, matrix, formats[name], self.folder)
            for name, matrix in wanted.items()
        }
        for full in self.about.floats:
            found[full] = read_floats(self.stored, full, trained[full].shape, self.folder)
        return found


def read_floats(stored: Mapping[str, Array], full: str, shape: tuple[int, ...], place: Path) -> F32:
    """Return the float32 tensor ``full`` of ``stored``; CheckpointError where it is missing, of another shape, or no
    number."""
    found = stored.get(full)
    if found is None or found.shape != shape or found.dtype.name != "float32":
        raise CheckpointError(
            f"{place}: {full} is missing or not float32 {list(shape)}; make the codes again"
        )
    floats = found.astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        raise CheckpointError(f"{place}: {full} has numbers that are not finite; make the codes again")
    return floats


def read_coded(
    stored: Mapping[str, Array], name: str, matrix: Matrix, storage: StorageFormat, place: Path
) -> Coded:
    """Return what ``stored`` has of ``name``; CheckpointError where it is missing, of another shape, or no number."""
    rows = matrix.copies * matrix.rows
    if storage.palette:
        shape: tuple[int, ...] = rows, matrix.columns
        halves, codes = (
            ("tables", (rows // rows_of_table(matrix.parts.values()), ENTRIES)),
            ("indices", shape),
        )
    else:
        shape = code_shape(rows, matrix.columns, storage.group_size, storage.bits)
        halves, codes = ("scales", shape[:2]), ("codes", shape)
    for (side, wanted), kind in ((codes, "uint8"), (halves, "float16")):
        found = stored.get(f"{name}.{side}")
        if found is None or found.shape != wanted or found.dtype.name != kind:
            raise CheckpointError(
                f"{place}: {name}.{side} is missing or not {kind} {list(wanted)}; make the codes again"
            )
    floats = stored[f"{name}.{halves[0]}"].astype(np.float16, copy=False)
    if not np.isfinite(floats).all():
        raise CheckpointError(
            f"{place}: {name}.{halves[0]} has numbers that are not finite; make the codes again"
        )
    whole = stored[f"{name}.{codes[0]}"].astype(np.uint8, copy=False)
    if not storage.palette:
        return Grouped(whole, floats, storage.bits, matrix.columns)
    if whole.max(initial=0) >= ENTRIES:
        raise CheckpointError(
            f"{place}: {name}.indices has {whole.max()}, and a table {ENTRIES} values; make the codes again"
        )
    return Palette(whole, floats)


def coded(reading: Reading, recipe: Recipe) -> dict[str, Matrix]:
    """Return the matrices of ``reading`` that ``recipe`` stores as codes, or as indices into tables."""
    formats = recipe.formats(reading.program.weights)
    return {name: reading.program.matrix(name) for name, storage in formats.items() if not storage.is_float}


def trainable(reading: Reading, recipe: Recipe) -> dict[str, Tensor]:
    """Return the stored tensors of ``reading`` that training changes beside the codes: norms, biases, and deltas that
    are floats."""
    found = {}
    for full, tensor in tensors(reading.program.weights):
        if tensor.kind != "matrix" and recipe.storage(tensor.parts[0], tensor.kind).is_float:
            found[full] = tensor
    return found


def hashes(reading: Reading, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the full name and the SHA-256 as float32 of each stored tensor of ``names``."""
    for full, tensor in tensors(reading.program.weights):
        if full in names:
            digest = hashlib.sha256()
            for piece in pieces(reading, tensor):
                digest.update(np.ascontiguousarray(piece.numpy(), "<f4").data)
            yield full, digest.hexdigest()


def write_codes(
    folder: Path, reading: Reading, recipe: Recipe, ids: I64, fitted: Fitted, steps: int = 0
) -> None:
    """Write ``fitted``, for the text ``ids`` [S], into ``folder``; ``steps`` of training it has had."""
    codes = {name: sides(found) for name, found in fitted.items() if isinstance(found, Coded)}
    floats = {name: found for name, found in fitted.items() if isinstance(found, np.ndarray)}
    with WeightsWriter(folder / NUMBERS, 2 * len(codes) + len(floats)) as writer:
        for full, array in floats.items():  # the widest numbers first: so each stays aligned
            writer.add(full, array)
        for number in range(2):
            for name, found in codes.items():
                side, half = list(found.items())[number]
                writer.add(f"{name}.{side}", half)
    matrices = {f"{name}.weight" for name in codes}
    digests = dict(hashes(reading, matrices | floats.keys()))
    about = About(
        FORMAT,
        VERSION,
        recipe,
        len(ids),
        ids_hash(ids),
        {full.removesuffix(".weight"): digest for full, digest in digests.items() if full in matrices},
        steps,
        {full: digest for full, digest in digests.items() if full in floats},
        sha256_of(folder / NUMBERS),
    )
    (folder / ABOUT).write_bytes(json_text(about) + b"\n")


def ids_hash(ids: I64) -> str:
    """Return the SHA-256 of ``ids`` as int64 little-endian."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<i8").data).hexdigest()


def check_recipe(recipe: Recipe, path: Path) -> None:
    """Raise CheckpointError for a recipe that nothing here writes."""
    kinds = {(bits, group, False) for bits in BITS for group in ((0,) if bits >= 16 else (0, *GROUP_SIZES))}
    kinds.add((TABLES.bits, TABLES.group_size, TABLES.palette))
    each = [rule.storage for rule in recipe.rules]
    known = kinds.issuperset((one.bits, one.group_size, one.palette) for one in each)
    known &= recipe.deltas in (FLOAT32, FLOAT16, INT8)
    named = 0 < len(recipe.name) <= 40 and recipe.name.isprintable()
    if not (known and named and recipe.rules and recipe.rules[-1].pattern == "*"):
        raise CheckpointError(
            f"{path}: its recipe is none that edgeloop quantize writes; make the codes again"
        )
