"""Checks that a bundle's graphs are those that its manifest describes, before any of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...bundle.folder import Bundle
from ...errors import BundleError
from ...model.program import Program
from ...model.sizes import output_size
from .graph import external_data, operators
from .operators import OPERATORS

_GIVEN = frozenset(
    {
        "ids", "rows", "state", "depth", "positions", "last", "longest", "tokens", "fresh", "cos", "sin", "row_depth",
        "spread", "spread_new", "kept", "types",
    }
)  # fmt: skip
"""The inputs that the host gives a graph beside its caches."""


def check_graph(bundle: Bundle, name: str, weights: str) -> None:
    """Raise BundleError unless the graph ``name`` has known operators only, and reads no file but ``weights``.

    onnxruntime runs whatever operator a graph has, and reads whatever file of its folder a graph names.
    """
    try:
        model = bundle.path(name).read_bytes()
        for domain, operator in operators(model):
            if (domain, operator) not in OPERATORS:
                found = f"{domain}.{operator}".removeprefix(".")[:80]
                raise BundleError(
                    f"{bundle.folder}: {name} has the operator {found!r}, wanted only those that an export writes; "
                    "copy the bundle again or export it again"
                )
        for tensor in external_data(model):
            folder, _, _ = name.rpartition("/")
            if f"{folder}/{tensor.location}".removeprefix("/") != weights:
                raise BundleError(
                    f"{bundle.folder}: {name} has {tensor.tensor!r} in {tensor.location!r}, wanted everything in "
                    f"{weights}; copy the bundle again or export it again"
                )
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{bundle.folder}: {name} is no ONNX graph ({error}); copy the bundle again"
        ) from error


def check_signature(session: Any, path: Path, stage: str, output: str, program: Program) -> None:
    """Raise BundleError unless the graph of ``session`` has the inputs and outputs of the stage of ``program``.

    ``output``: the name of its output beside rows of caches.
    """
    given = {value.name: list(value.shape) for value in session.get_inputs()}
    made = {value.name: list(value.shape) for value in session.get_outputs()}
    shapes = program.caches("block" if stage == "fill" else stage)
    sides = [(f"{i}.{side}", shape) for i, shape in enumerate(shapes) for side in ("key", "value")]
    if stage == "fill":
        takes: dict[str, list[Any]] = {}
        makes: dict[str, list[Any]] = {
            f"{side}.{i}": ["*", "*", shape.kv_heads * shape.head_dim]
            for i, shape in enumerate(shapes)
            for side in ("key", "value")
        }
    else:
        takes = {f"past.{name}": ["*", shape.kv_heads, "*", shape.head_dim] for name, shape in sides}
        makes = {f"present.{name}": wanted for (name, _), wanted in zip(sides, takes.values(), strict=True)}
        makes[output] = ["*", output_size(program)] if output == "logits" else ["*", "*", program.width]
    if "state" in given:
        takes["state"] = ["*", "*", program.width]
    host = _GIVEN | {f"{side}.{i}" for i in range(1, len(program.rotations)) for side in ("cos", "sin")}
    for found, wanted, others in ((given, takes, host), (made, makes, frozenset[str]())):
        strange = min(set(found) - set(wanted) - others, default=None)
        differs = next((n for n, shape in wanted.items() if not _fits(found.get(n), shape)), strange)
        if differs is not None:
            raise BundleError(
                f"{path.name} is of another model than the manifest describes: {differs} is {found.get(differs)}, "
                f"wanted {wanted.get(differs)}; copy the bundle again"
            )


def _fits(found: list[Any] | None, wanted: list[Any]) -> bool:
    return (
        found is not None
        and len(found) == len(wanted)
        and all(size in ("*", other) for size, other in zip(wanted, found, strict=True))
    )
