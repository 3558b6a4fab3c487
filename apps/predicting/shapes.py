"""Shapes of one's own: a TOML file with the fields of a shape, and the same model with another number of depths."""

from __future__ import annotations

from dataclasses import fields, replace

import msgspec

from ...export.families import FAMILIES
from ...export.synth_shapes import WRITTEN_OUT, Shape
from ...runtime.errors import UsageError
from ...runtime.model.limits import MAX_LAYERS, MAX_SIZE, within
from ..intake import read_text

_LIMITS = {
    "vocab_size": MAX_SIZE,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "heads": 1 << 12,
    "kv_heads": 1 << 12,
    "layers": 1024,
    "repeats": 1024,
    "context": MAX_SIZE,
}
SHAPED = ("mor", "llama", "gemma", "gpt_neox", "mobilellm", "nanbeige", "ouro", "huginn", "retrofit")
"""Families that a shape may be of."""


def read_shape(file: str) -> Shape:
    """Return the shape in the TOML ``file``; UsageError, one line, for unknown keys and numbers out of range."""
    known = {each.name for each in fields(Shape)}
    try:
        found = msgspec.toml.decode(read_text(file))
        strange = min(found.keys() - known, default=None)
        if strange is not None:
            raise UsageError(f"{file}: a shape has no {strange!r:.60}; it has {', '.join(sorted(known))}")
        shape: Shape = msgspec.convert(found, Shape)
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"{file} is no shape: {str(error).splitlines()[0]:.200}") from error
    for problem in _problems(shape):
        raise UsageError(f"{file}: {problem}")
    return shape


def with_repeats(shape: Shape, depths: int) -> Shape:
    """Return ``shape`` with ``depths`` depths.

    Where its ``layers`` are those before sharing they stay, so that the block gets shorter; else the block stays.
    """
    if shape.family == "mobilellm":
        raise UsageError(
            "a mobilellm shape applies each layer twice in a row: it has no other number of depths"
        )
    edges = 2 if shape.family in WRITTEN_OUT and shape.sharing.startswith("middle_") else 0
    if shape.family in WRITTEN_OUT and shape.layers - edges < depths:
        raise UsageError(f"{depths} depths of {shape.layers - edges} layers leave none for the block")
    return replace(shape, repeats=depths)


def _problems(shape: Shape) -> list[str]:
    problems = [
        each for name, most in _LIMITS.items() for each in within(name, getattr(shape, name), 1, most)
    ]
    if shape.family not in SHAPED:
        known = {entry.name for entry in FAMILIES}
        why = "which has no shapes" if shape.family in known else "which is no family"
        problems.append(f"family is {shape.family!r:.40}, {why}; wanted one of {', '.join(SHAPED)}")
    if not problems and shape.heads % shape.kv_heads:
        problems.append(f"heads are {shape.heads}, no multiple of kv_heads, {shape.kv_heads}")
    if not problems and shape.head_size is None and shape.hidden_size % shape.heads:
        problems.append(f"hidden_size is {shape.hidden_size}, no multiple of heads, {shape.heads}")
    if not problems:
        problems += within("layers times repeats", shape.applied_layers, 1, MAX_LAYERS)
    return problems
