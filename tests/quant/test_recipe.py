"""Which tensor is stored how."""

from __future__ import annotations

import pytest

from edgeloop.quant.recipe import GROUP_SIZES, RECIPES, Recipe
from edgeloop.runtime.errors import UsageError

LAYER = "segments.1.layers.0"
VECTORS = [
    "norm.weight",
    "norm_bias.weight",
    f"{LAYER}.attention_norm.weight",
    f"{LAYER}.q_proj.bias",
    "injection.weight",
]
DELTAS = [f"{LAYER}.q_proj.lora_a", f"{LAYER}.down_proj.lora_b"]
MATRICES = ["embed.weight", "head.weight", f"{LAYER}.q_proj.weight", f"{LAYER}.down_proj.weight"]


@pytest.mark.parametrize(
    ("name", "matrix", "vector", "delta"),
    [("none", 32, 32, 32), ("int8", 8, 32, 16), ("int8-channel", 8, 32, 16), ("int4", 4, 32, 16)],
)
def test_bits_of_every_kind_of_tensor(name: str, matrix: int, vector: int, delta: int) -> None:
    recipe = Recipe.named(name, 32)
    assert recipe.bits == matrix
    assert {recipe.storage(n).bits for n in MATRICES} == {matrix}
    assert {recipe.storage(n, "vector").bits for n in VECTORS} == {vector}
    assert {recipe.storage(n).bits for n in DELTAS} == {delta}
    assert recipe.storage("embed.weight").is_float == (name == "none")


def test_every_recipe_ends_with_a_rule_for_the_rest() -> None:
    assert {rules[-1].pattern for rules in RECIPES.values()} == {"*"}


@pytest.mark.parametrize(
    ("name", "group_size", "message"),
    [
        ("int3", 32, "unknown quantization 'int3': choose one of none, int8, int8-channel, int4"),
        ("", 32, "unknown quantization ''"),
        ("int4", 48, "group size 48: choose one of 32, 64, 128"),
        ("none", 0, "group size 0"),
    ],
)
def test_unknown_names_and_sizes(name: str, group_size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe.named(name, group_size)


def test_a_channel_is_a_whole_row_whatever_the_group_size() -> None:
    assert Recipe.named("int8-channel", 64).group_size == 0
    assert Recipe.named("int8", 64).group_size == 64


def test_group_sizes_hold_whole_bytes() -> None:
    # Codes of one group are a multiple of 16 bytes, which keeps what follows them in a file aligned.
    assert all(size * 4 // 8 % 16 == 0 for size in GROUP_SIZES)
