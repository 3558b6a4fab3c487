"""Checks that a Core ML package is that of the model in the manifest, before any of its functions runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...errors import BundleError
from ...model.program import Program
from ...model.sizes import output_size
from .layout import Layout
from .package import Package

if TYPE_CHECKING:
    from .interpreter import Function


def check_described(package: Package, program: Program) -> None:
    """Raise BundleError unless the manifest's own description of the package goes with ``program``."""
    if missing := next((name for name in _made(program) if name not in package.functions), None):
        raise _other(package, f"it has no function {missing}")
    wanted = Layout(program).shapes(package.capacity)
    for state in {**wanted, **package.states}:
        if (found := package.states.get(state)) != (shape := wanted.get(state, ())):
            raise _other(package, f"its state {state} is {found}, wanted {shape}")


def check_functions(functions: Mapping[str, Function], package: Package, program: Program) -> None:
    """Raise BundleError unless the package's functions are the described ones, with the outputs of the model."""
    if set(functions) != set(package.functions):
        strange = min(set(functions) ^ set(package.functions))
        raise _other(package, f"the function {strange} is only in one of them")
    for name, width in _made(program).items():
        function = functions[name]
        sizes = {
            made: t.shape for op in function.operations for made, t in zip(op.makes, op.types, strict=True)
        }
        found = sizes.get(function.outputs[-1], ()) if function.outputs else ()
        if found[-1:] != (width,):
            raise _other(package, f"{name} makes {found}, wanted {width} numbers")
        states = {state: t.shape for state, t in function.states.items()}
        if states != package.states:
            raise _other(package, f"{name} has states {states}")
    longest = "embed" if program.encoder else "prefill"
    given = functions[longest].inputs
    chunk = given["ids"].shape if "ids" in given else ()
    if chunk != (1, package.chunk):
        raise _other(package, f"{longest} takes {chunk}, wanted {package.chunk} tokens")


def _made(program: Program) -> dict[str, int]:
    """Return the functions that the host calls, and the width of the last output of each."""
    prefill = () if program.encoder else ("prefill",)
    steps = ("embed", *prefill, *(f"decode_d{depth}" for depth in range(program.depths)))
    return {**dict.fromkeys(steps, program.width), "head": output_size(program)}


def _other(package: Package, what: str) -> BundleError:
    return BundleError(
        f"{package.path} is of another model than the manifest describes: {what}; copy the bundle again"
    )
