"""What a run of ``edgeloop bench`` leaves behind: typed, versioned, closed (an unknown key is an error)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from ...runtime.bundle.manifest import MANIFEST
from ..hugepages import huge_pages_on
from ..machine import memory_bytes, processor, processor_features, usable_threads
from ..quantities import bundle_bytes
from .interval import Estimate

if TYPE_CHECKING:
    from ...runtime.bundle.folder import Bundle

FORMAT = 1
PACKAGES = ("numpy", "onnxruntime", "executorch", "coremltools", "torch")
"""Those whose versions a speed may depend on, where they are installed."""

Better = Literal["more", "less", "neither"]


class Measure(Struct, frozen=True, forbid_unknown_fields=True):
    """One number that was measured: ``name`` is its own within a record, ``group`` says what it is a part of.

    ``at`` is where it stands within its group: tokens of a context, a depth.
    """

    name: str
    group: str
    unit: str
    better: Better
    value: Estimate
    at: float | None = None


class Series(Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers over time: (milliseconds, value)."""

    name: str
    unit: str
    points: tuple[tuple[float, float], ...]


class Machine(Struct, frozen=True, forbid_unknown_fields=True):
    """Where it ran; ``threads``: processors that the process could use."""

    system: str
    processor: str
    features: tuple[str, ...]
    threads: int
    memory_bytes: int | None
    huge_pages: bool


class Subject(Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured: the bundle's folder, the SHA-256 of its manifest (which has those of all files), its bytes,
    how most of its matrices are stored, and the model's family."""

    name: str
    sha256: str
    bytes: int
    parameters: int
    depths: int
    scheme: str
    bits: int
    group_size: int
    family: str = ""


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run. ``date`` is UTC, ISO 8601. ``settings`` are the flags that were given or stand for their defaults.

    ``foreign``: the share of the cores that other programs took during the run, None where the system does not say;
    ``disturbed`` of ``turns`` were left out for it.
    """

    format: int = FORMAT
    mode: str
    date: str
    edgeloop: str
    python: str
    versions: dict[str, str]
    machine: Machine
    bundle: Subject
    engine: str
    settings: dict[str, str]
    foreign: float | None
    disturbed: int
    turns: int
    measures: tuple[Measure, ...]
    series: tuple[Series, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[str, ...]:
        """What has to be equal for two records to be of the same measurement."""
        settings = (f"{key}={value}" for key, value in sorted(self.settings.items()))
        return (self.mode, self.bundle.name, self.engine, *settings)

    def group(self, name: str) -> list[Measure]:
        """The measures of a group, by where they stand."""
        found = [measure for measure in self.measures if measure.group == name]
        return sorted(found, key=lambda measure: measure.at or 0.0)


def this_machine() -> Machine:
    """The computer that this is."""
    return Machine(
        f"{platform.system()} {platform.release()}",
        processor(),
        tuple(processor_features()),
        usable_threads(),
        memory_bytes(),
        huge_pages_on(),
    )


def subject(bundle: Bundle) -> Subject:
    """What a bundle is."""
    manifest = bundle.manifest
    said = manifest.quantization
    return Subject(
        bundle.folder.name,
        hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest(),
        bundle_bytes(manifest),
        manifest.parameters,
        bundle.program.depths,
        said.scheme,
        said.bits,
        said.group_size,
        manifest.program.family,
    )


def versions() -> dict[str, str]:
    """Of ``PACKAGES``, those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The date and time, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
