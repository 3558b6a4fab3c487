"""Recipes in TOML: what one says, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import ROOT, blocks

from edgeloop.quant.recipe import FLOAT16, FLOAT32, INT8, StorageFormat
from edgeloop.quant.recipe_file import read_recipe
from edgeloop.runtime.errors import UsageError

REST = '[[rules]]\nmatch = "*"\nbits = 4\ngroup = 64\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_rules_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'deltas = "float32"\n[[rules]]\nmatch = "embed"\nbits = 8\ngroup = "channel"\n'
        '[[rules]]\nmatch = "*.down_proj"\nbits = 16\n' + REST,
    )
    recipe = read_recipe(path)
    assert (recipe.name, recipe.deltas, recipe.own) == ("mine", FLOAT32, True)
    assert [(rule.pattern, rule.storage) for rule in recipe.rules] == [
        ("embed", StorageFormat(8)),
        ("*.down_proj", FLOAT16),
        ("*", StorageFormat(4, 64)),
    ]
    assert read_recipe(write(tmp_path, 'deltas = "int8"\n' + REST)).deltas == INT8
    assert read_recipe(write(tmp_path, 'name = "phone 2"\n' + REST)).name == "phone 2"


def test_the_rules_of_the_page(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs" / "quantization.md", "toml")
    recipe = read_recipe(write(tmp_path, text))
    assert (recipe.name, recipe.deltas, len(recipe.rules)) == ("mine", FLOAT16, text.count("[[rules]]"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no recipe: Object missing required field `rules`"),
        ("rules = []", "the last rule has to match everything"),
        ("nonsense", "is no recipe: "),
        ("grup = 1\n" + REST, "unknown field `grup`"),
        (REST + "size = 3\n", "unknown field `size`"),
        (REST.replace("64", "48"), "the group of rule 1 is 48, wanted 32, 64, 128, "),
        (REST.replace("64", "0"), "the group of rule 1 is 0"),
        (
            REST.replace("4\n", "8\n", 1).replace("64", '"table"'),
            "rule 1 wants 8 bits of a table, .* bits = 4",
        ),
        ('[[rules]]\nmatch = "*"\nbits = 4\n', "the group of rule 1 is none"),
        (REST.replace("4\n", "3\n", 1), "Invalid enum value 3"),
        (REST.replace("bits = 4", "bits = 16"), "rule 1 stores floats, which have no groups"),
        (REST.replace('"*"', '"embed"'), "the last rule has to match everything"),
        ('name = "int4"\n' + REST, "the recipe's name is 'int4'"),
        ('name = "a\\u001bb"\n' + REST, "the recipe's name is"),
        ('deltas = "int4"\n' + REST, "Invalid enum value 'int4'"),
        (REST.replace("bits = 4", "bits = " + "4" * 5000), "is no recipe: Exceeds the limit"),
        (REST.replace('"*"', "2026-02-30"), "is no recipe: "),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_recipe(write(tmp_path, text))


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        read_recipe(write(tmp_path, "#" * (1 << 20) + "\n" + REST))
