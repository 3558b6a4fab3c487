"""manifest.json: what a bundle holds. Closed: an unknown or missing key is an error that names it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from ..engines.details import GRAPHS, KINDS, Details
from ..errors import BundleError
from ..model.checks import problems
from ..model.limits import MAX_LAYERS, MAX_NUMBERS, MAX_SIZE, within
from ..model.program import Program
from ..model.weights import Matrix
from ..version import VERSION
from . import details as base
from .json_text import json_text

FORMAT = 4
MANIFEST = "manifest.json"
MOST_BYTES = 64 << 20
"""Of a manifest; a real one has some thousands, and the chat templates."""
BITS = (4, 8, 16, 32)
"""The bits of a matrix's stored numbers: codes of 4 or 8, float16 or float32."""
DELTA_BITS = (8, 16, 32)
"""The same of A and B of deltas."""
NEVER = 1e30
"""The threshold of a depth after which no token leaves; negative for rules that leave when a score is low."""

DetailsKind = TypeVar("DetailsKind", bound=base.Details)


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle."""

    bytes: int
    sha256: str


class Storage(Struct, frozen=True, forbid_unknown_fields=True):
    """How a matrix is stored. ``bits`` 16 and 32 are floats.

    ``group_size`` 0: no groups, but one scale for each row (or none, for floats, and for indices into ``tables``).
    """

    bits: int
    group_size: int
    tables: bool = False


class Quantization(Struct, frozen=True, forbid_unknown_fields=True):
    """How the matrices are stored: most by ``bits``, ``group_size`` and ``tables``, as in ``Storage``, ``others`` by
    name.

    ``deltas``: bits of a number of A and B of the depths' deltas, 8: codes with a scale a row; None: there are none.
    """

    scheme: str
    bits: int
    group_size: int
    others: dict[str, Storage] = {}
    deltas: int | None = None
    tables: bool = False

    def storage(self, matrix: str) -> Storage:
        """Return how ``matrix`` is stored."""
        return self.others.get(matrix) or Storage(self.bits, self.group_size, self.tables)


class Parity(Struct, frozen=True, forbid_unknown_fields=True):
    """What the export's parity step measured against the reference engine.

    ``per_depth`` and ``logits`` are largest absolute differences relative to the largest absolute value, of the same
    graphs and weights with float arithmetic; one graph of all depths has logits only. ``shipped`` is what the engine
    differs by as shipped, int8 activations or float16 included, from a reference with the same activations; it was
    held to ``bound``.
    """

    per_depth: tuple[float, ...]
    logits: float
    shipped: float
    bound: float | None = None


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """One exported target: the paths of its graphs inside the bundle, by stage, and its own ``details``."""

    graphs: dict[str, str]
    weights: str
    parity: Parity
    details: Details | None = None

    def details_as(self, kind: type[DetailsKind]) -> DetailsKind:
        """Return its details; BundleError when they are not of that ``kind``."""
        if not isinstance(self.details, kind):
            raise BundleError(
                f"the manifest describes no {kind.__name__.lower()}; export the checkpoint again"
            )
        return self.details


class Exit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An exit rule that `edgeloop calibrate` wrote: thresholds for each depth but the last, and what they achieved.

    ``agreement`` is the share of ``tokens`` for which the likeliest next token was that of full depth.
    """

    thresholds: tuple[float, ...]
    skipped_kv: str = field(name="missing")
    goal: str
    tokens: int
    perplexity: float
    full_perplexity: float
    agreement: float
    mean_depth: float


class Text(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The text side of the model: its tokenizer and chat templates.

    ``tokenizer`` is the name of its file, ``lanes`` that of the same for hosts without Python, as the lane engine's
    library reads it; None where ``model.lanes`` has it, or the library reads no such tokenizer. ``special_tokens`` are
    the tokenizer's own, as a chat template sees them (``bos_token``, ``eos_token``, ``pad_token`` …: the text of each);
    with ``split_special_tokens`` those in a text are text like any other. ``chat_templates`` are Jinja sources by name;
    the usual one is ``default``.
    """

    tokenizer: str | None = None
    lanes: str | None = None
    special_tokens: dict[str, str] = {}
    split_special_tokens: bool = False
    chat_templates: dict[str, str] = {}


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The bundle's table of contents; written last, so a bundle without it is not a bundle.

    ``heads`` is the file of the heads that the host computes itself (exit gate, router, probes), ``exits`` are
    the calibrated exit rules by name. ``parameters`` are those stored, ``unrolled_parameters`` those of the same
    model with every applied layer stored. ``loop_said_by``: what of the checkpoint said how often the layers run.
    """

    format: int
    edgeloop: str
    program: Program
    quantization: Quantization
    targets: dict[str, Target]
    heads: str | None = None
    exits: dict[str, Exit] = {}
    text: Text
    parameters: int
    unrolled_parameters: int
    loop_said_by: str | None = None
    files: dict[str, File]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``folder``/manifest.json as a new file: the present one may be linked elsewhere."""
    fresh = folder / f"{MANIFEST}.new"
    fresh.write_bytes(json_text(manifest))
    fresh.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the bundle ``folder``.

    BundleError when it is missing, damaged, of another format, or has a number out of range.
    """
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise BundleError(f"{path} is no plain file; copy the bundle again")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise BundleError(f"{path} has {size} bytes, wanted {MOST_BYTES} at most; export it again")
        data = path.read_bytes()
    except OSError as error:
        if not folder.exists():
            raise BundleError(
                f"{folder} does not exist; give a bundle's folder, which `edgeloop export` makes"
            ) from error
        raise BundleError(
            f"{folder} is not a bundle: no readable {MANIFEST} ({error.strerror}); make one with `edgeloop export`"
        ) from error
    keys: dict[str, msgspec.Raw] = {}
    try:
        keys = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        version = keys.get("format")
        if version is None or msgspec.json.decode(version) != FORMAT:
            found = "no bundle format" if version is None else f"bundle format {bytes(version).decode()[:20]}"
            raise BundleError(
                f"{path}: {found}, this edgeloop reads format {FORMAT}{_other_maker(keys)}; "
                "export the checkpoint again"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}{_other_maker(keys)}; export the checkpoint again") from error
    if problem := next(manifest_problems(manifest), None):
        raise BundleError(f"{path}: {problem}; export the checkpoint again")
    return manifest


def _other_maker(keys: Mapping[str, msgspec.Raw]) -> str:
    """Return which edgeloop wrote a manifest with ``keys``, if another one did: it may know other ops."""
    said = bytes(keys.get("edgeloop", b"")).decode(errors="replace").strip('"')
    if not re.fullmatch(r"[0-9A-Za-z.+-]{1,20}", said) or said == VERSION:
        return ""
    return f" (made by edgeloop {said}, this is {VERSION})"


def manifest_problems(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the numbers of ``manifest``, and with what has to go together."""
    program, stored = manifest.program, manifest.quantization
    yield from problems(program)
    yield from _storage_problems("quantization", stored)
    if stored.deltas is not None and stored.deltas not in DELTA_BITS:
        yield f"quantization.deltas is {stored.deltas}, wanted one of {', '.join(map(str, DELTA_BITS))}"
    for name, other in stored.others.items():
        if not isinstance(program.weights.get(name), Matrix):
            yield f"quantization.others has {name[:80]!r}, which is no matrix of the program"
        yield from _storage_problems(f"quantization.others[{name[:80]!r}]", other)
    yield from within("parameters", manifest.parameters, 1, MAX_NUMBERS)
    yield from within("unrolled_parameters", manifest.unrolled_parameters, 1, MAX_NUMBERS * MAX_LAYERS)
    for name, file in manifest.files.items():
        yield from within(f"files[{name!r}].bytes", file.bytes, 0, 1 << 50)
        if not re.fullmatch("[0-9a-f]{64}", file.sha256):
            yield f"files[{name!r}].sha256 is {file.sha256[:80]!r}, wanted 64 hexadecimal digits"
    if not manifest.targets:
        yield "targets are none, wanted one at least"
    for name, target in manifest.targets.items():
        yield from _target_problems(name, target)
    for name, rule in manifest.exits.items():
        yield from _exit_problems(f"exits.{name}", rule, program.depths)


def _storage_problems(place: str, stored: Storage | Quantization) -> Iterator[str]:
    yield from within(f"{place}.bits", stored.bits, 4, 32)
    if stored.bits not in BITS:
        yield f"{place}.bits is {stored.bits}, wanted one of {', '.join(map(str, BITS))}"
    yield from within(f"{place}.group_size", stored.group_size, 0, MAX_SIZE)
    if stored.tables and (stored.bits, stored.group_size) != (4, 0):
        yield f"{place}.tables is true of {stored.bits} bits in groups of {stored.group_size}, wanted 4 bits without"


def _target_problems(name: str, target: Target) -> Iterator[str]:
    place, wanted = f"targets.{name}", KINDS.get(name)
    for graph in GRAPHS.get(name, ()):
        if graph not in target.graphs:
            yield f"{place}.graphs has no {graph}"
    parity = target.parity
    for value in (*parity.per_depth, parity.logits, parity.shipped):
        yield from within(f"{place}.parity", value, 0, 1e30)
    if target.details is None:
        if wanted is not None:
            yield f"{place} has no details, wanted those of target {name}"
    elif wanted is None or not isinstance(target.details, wanted):
        yield f"{place}.details are those of target {target.details.target}"
    else:
        yield from target.details.problems(f"{place}.details")


def _exit_problems(name: str, rule: Exit, depths: int) -> Iterator[str]:
    if len(rule.thresholds) != depths - 1:
        yield f"{name}.thresholds are {len(rule.thresholds)}, wanted {depths - 1}: one for each depth but the last"
    for value in rule.thresholds:
        yield from within(f"{name}.thresholds", value, -NEVER, NEVER)
    yield from within(f"{name}.tokens", rule.tokens, 0, 1 << 50)
    yield from within(f"{name}.agreement", rule.agreement, 0, 1)
    yield from within(f"{name}.mean_depth", rule.mean_depth, 0, depths)
    for key, value in (("perplexity", rule.perplexity), ("full_perplexity", rule.full_perplexity)):
        yield from within(f"{name}.{key}", value, 1e-30, 1e300)
