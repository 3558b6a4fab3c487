"""Are the graphs of a bundle those that its manifest describes? Asked before anything of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .bundle import Bundle
from .errors import BundleError
from .onnx_graph import external_data, operators
from .onnx_operators import OPERATORS
from .spec import Spec, stage_layers

_GIVEN = frozenset(
    {
        "ids", "rows", "state", "depth", "positions", "last", "longest", "tokens", "fresh", "cos", "sin", "row_depth",
        "spread", "spread_new", "kept",
    }
)  # fmt: skip
"""What the host gives a graph beside its caches."""


def check_graph(bundle: Bundle, name: str, weights: str) -> None:
    """BundleError unless the graph ``name`` is of operators that an export writes, and what it reads is in ``weights``.

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


def check_signature(session: Any, path: Path, stage: str, output: str, spec: Spec) -> None:
    """BundleError unless the graph of ``session`` takes and gives what a model with ``spec`` has there.

    ``output``: the name of what it makes beside rows of caches.
    """
    given = {value.name: list(value.shape) for value in session.get_inputs()}
    made = {value.name: list(value.shape) for value in session.get_outputs()}
    numbers = range(stage_layers(spec, "block" if stage == "fill" else stage))
    cache, width = ["*", spec.kv_heads, "*", spec.head_dim], spec.kv_heads * spec.head_dim
    sides = [f"{i}.{side}" for i in numbers for side in ("key", "value")]
    if stage == "fill":
        takes: dict[str, list[Any]] = {}
        makes: dict[str, list[Any]] = {
            f"{side}.{i}": ["*", "*", width] for i in numbers for side in ("key", "value")
        }
    else:
        takes = {f"past.{name}": cache for name in sides}
        makes = {f"present.{name}": cache for name in sides}
        makes[output] = ["*", spec.vocab_size] if output == "logits" else ["*", "*", spec.hidden_size]
    if "state" in given:
        takes["state"] = ["*", "*", spec.hidden_size]
    for found, wanted, others in ((given, takes, _GIVEN), (made, makes, frozenset[str]())):
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
