"""manifest.json: what a bundle holds. Closed: an unknown or missing key is an error that names it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from .errors import BundleError
from .spec import Spec

FORMAT = 3
MANIFEST = "manifest.json"
NEVER = 1e30
"""The threshold of a depth that nobody leaves after; its negative for rules that leave when a score is low."""


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle."""

    bytes: int
    sha256: str


class Quantization(Struct, frozen=True, forbid_unknown_fields=True):
    """How the matrices are stored. ``bits`` 32 means float32.

    ``group_size`` 0: no groups, but one scale for each row (or none, for float32).
    """

    scheme: str
    bits: int
    group_size: int


class Parity(Struct, frozen=True, forbid_unknown_fields=True):
    """What the export's parity step measured against the torch modules.

    ``per_depth`` and ``logits`` are largest absolute differences relative to the largest absolute value, with
    float arithmetic in the engine; ``shipped`` is that of the logits as shipped, int8 activations included.
    """

    per_depth: tuple[float, ...]
    logits: float
    shipped: float


class Package(Struct, frozen=True, forbid_unknown_fields=True):
    """What is in a Core ML package, beside what the spec says.

    ``functions``: the compute unit that each one is meant for, as Swift calls it. ``states``: the shape of each, the
    same in all functions. ``chunk``: tokens of a prefill call. ``capacity``: tokens that a state has room for.
    ``palettized``: its matrices are indices into tables of 16 values, whatever the bundle's other targets have.
    """

    path: str
    functions: dict[str, str]
    states: dict[str, tuple[int, ...]]
    chunk: int
    capacity: int
    palettized: bool = False


Constant = bool | int | tuple[int, ...]


class Flat(Struct, frozen=True, forbid_unknown_fields=True):
    """What a program of the flat layout tells its host beside logits, and how many tokens its caches hold."""

    constants: dict[str, Constant]
    rows: int


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """One exported target: its graphs, by stage, as paths inside the bundle.

    A Core ML target has one file of all its functions, and describes them in ``package``; a program of the flat
    layout is described in ``flat``.
    """

    graphs: dict[str, str]
    weights: str
    parity: Parity
    package: Package | None = None
    flat: Flat | None = None


class Exit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An exit rule as ``edgeloop calibrate`` left it: thresholds for each depth but the last, and what they gave.

    ``agreement`` is the share of ``tokens`` for which the likeliest next token was that of full depth.
    """

    thresholds: tuple[float, ...]
    missing: str
    goal: str
    tokens: int
    perplexity: float
    full_perplexity: float
    agreement: float
    mean_depth: float


class Text(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What surrounds the model when it reads and writes text.

    ``tokenizer`` is the name of its file. ``special_tokens`` are the tokenizer's own, as a chat template sees them
    (``bos_token``, ``eos_token``, ``pad_token`` …: the text of each). ``chat_templates`` are Jinja sources by name;
    the usual one is ``default``.
    """

    tokenizer: str | None = None
    special_tokens: dict[str, str] = {}
    chat_templates: dict[str, str] = {}


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The bundle's table of contents; written last, so a bundle without it is not a bundle.

    ``heads`` is the file of the heads that the host computes itself (exit gate, router, probes), ``exits`` are
    the calibrated exit rules by name. ``parameters`` are those stored, ``unrolled_parameters`` those of the same
    model with every applied layer stored.
    """

    format: int
    edgeloop: str
    spec: Spec
    quantization: Quantization
    targets: dict[str, Target]
    heads: str | None = None
    exits: dict[str, Exit] = {}
    text: Text
    parameters: int
    unrolled_parameters: int
    files: dict[str, File]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``folder``/manifest.json."""
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle ``folder``; BundleError when it is missing, damaged or of another format."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{folder} is not a bundle: no readable {MANIFEST} ({error.strerror}); make one with `edgeloop export`"
        ) from error
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format")
        if version is None or msgspec.json.decode(version) != FORMAT:
            found = None if version is None else bytes(version).decode()
            raise BundleError(
                f"{path}: bundle format {found}, this edgeloop reads format {FORMAT}; export the checkpoint again"
            )
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}; export the checkpoint again") from error
