"""A recipe of one's own, as TOML.

name = "mine"            # by default the file's, without .toml
deltas = "float16"       # or float32; or int8: codes with a scale a row

[[rules]]                # the first that matches a matrix is how it is stored
match = "embed"
bits = 8
group = "channel"        # a scale a row

[[rules]]
match = "*"              # the last has to match all
bits = 4                 # 4 and 8: codes; 16 and 32: floats, without group
group = 64               # 32, 64 or 128; or "table", of 4 bits: indices into tables of 16 values, for Core ML
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from ..runtime.errors import UsageError
from ..runtime.model.codec import ENTRIES
from .recipe import (
    CHANNEL,
    FLOAT16,
    FLOAT32,
    GROUP_SIZES,
    INT8,
    RECIPES,
    TABLES,
    Recipe,
    Rule,
    StorageFormat,
)

MOST_BYTES = 1 << 20
_DELTAS = {"float16": FLOAT16, "float32": FLOAT32, "int8": INT8}


class _Rule(Struct, frozen=True, forbid_unknown_fields=True):
    match: str
    bits: Literal[4, 8, 16, 32]
    group: int | Literal["channel", "table"] | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    rules: list[_Rule]
    name: str | None = None
    deltas: Literal["float16", "float32", "int8"] = "float16"


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in ``path``; UsageError, which names the key, for anything in it that is not as above."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UsageError(f"{path} has more than {MOST_BYTES} bytes; a recipe is a few lines of TOML")
        found = msgspec.convert(tomllib.loads(data.decode()), _File)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}); give a recipe, a file of TOML"
        ) from error
    except (ValueError, RecursionError, msgspec.ValidationError) as error:  # also of a date that is none
        raise UsageError(f"{path} is no recipe: {error}; docs/quantization.md says what one has") from error
    name = found.name if found.name is not None else path.stem
    if not name.isprintable() or not 0 < len(name) <= 40 or name in RECIPES:
        raise UsageError(
            f"{path}: the recipe's name is {name[:60]!r}, wanted up to 40 characters, and no preset's; give it "
            'another: name = "…"'
        )
    if not found.rules or found.rules[-1].match != "*":
        raise UsageError(f'{path}: the last rule has to match everything; end with match = "*"')
    rules = tuple(_rule(path, number, rule) for number, rule in enumerate(found.rules, 1))
    return Recipe(name, rules, _DELTAS[found.deltas], own=True)


def _rule(path: Path, number: int, rule: _Rule) -> Rule:
    if rule.bits >= 16:
        if rule.group is not None:
            raise UsageError(f"{path}: rule {number} stores floats, which have no groups; leave group away")
        return Rule(rule.match, StorageFormat(rule.bits))
    if rule.group == "channel":
        return Rule(rule.match, StorageFormat(rule.bits, CHANNEL))
    if rule.group == "table":
        if rule.bits != TABLES.bits:
            raise UsageError(
                f"{path}: rule {number} wants {rule.bits} bits of a table, and tables have {ENTRIES} values; give it "
                f"bits = {TABLES.bits}"
            )
        return Rule(rule.match, TABLES)
    if rule.group not in GROUP_SIZES:
        said = "none" if rule.group is None else rule.group
        raise UsageError(
            f"{path}: the group of rule {number} is {said}, wanted {', '.join(map(str, GROUP_SIZES))}, "
            '"channel" or "table"'
        )
    return Rule(rule.match, StorageFormat(rule.bits, rule.group))


def recipe_text(recipe: Recipe, comment: str = "") -> str:
    """Return ``recipe`` as a file of it, which ``read_recipe`` reads; ``comment`` is its first line."""
    deltas = {storage: word for word, storage in _DELTAS.items()}
    lines = [f"# {comment}", ""] if comment else []
    lines += [f'name = "{recipe.name}"', f'deltas = "{deltas[recipe.deltas]}"']
    for rule in recipe.rules:
        lines += ["", "[[rules]]", f'match = "{rule.pattern}"', f"bits = {rule.storage.bits}"]
        if not rule.storage.is_float:
            word = '"table"' if rule.storage.palette else '"channel"'
            lines.append(f"group = {rule.storage.group_size or word}")
    return "\n".join(lines) + "\n"
