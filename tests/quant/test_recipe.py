"""Which tensor is stored how."""

from __future__ import annotations

from pathlib import Path

import pytest
from editing import read

from edgeloop.quant.recipe import FLOAT16, FLOAT32, GROUP_SIZES, RECIPES, Recipe, Rule, StorageFormat
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.weights import Matrix, Vector, Weight

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
    assert {recipe.storage(n, "delta").bits for n in DELTAS} == {delta}
    assert recipe.storage(f"{LAYER}.q_proj.lora_scale", "delta") == FLOAT32
    assert recipe.storage("embed.weight").is_float == (name == "none")


def test_mixed_gives_8_bits_to_the_tables_and_groups_of_4_to_the_rest() -> None:
    recipe = Recipe.named("int4-mixed", 64)
    assert recipe.storage("embed.weight") == recipe.storage("head.weight") == StorageFormat(8)
    assert recipe.storage(f"{LAYER}.q_proj.weight") == recipe.rest == StorageFormat(4, 64)


def test_every_recipe_ends_with_a_rule_for_the_rest() -> None:
    assert {make(32).rules[-1].pattern for make in RECIPES.values()} == {"*"}
    assert {name: make(32).name for name, make in RECIPES.items()} == {name: name for name in RECIPES}


def test_the_first_rule_that_matches_wins() -> None:
    rules = (Rule("a.*", StorageFormat(8)), Rule("a.b", FLOAT16), Rule("*", FLOAT32))
    recipe = Recipe("mine", rules)
    assert [recipe.storage(n).bits for n in ("a.b.weight", "a.c.weight", "b.weight")] == [8, 8, 32]


WEIGHTS: dict[str, Weight] = {
    "embed": Matrix({"embed": 12}, 6),
    "layers.0.qkv_proj": Matrix({"q_proj": 4, "k_proj": 2, "v_proj": 2}, 6),
    "layers.0.o_proj": Matrix({"o_proj": 6}, 7),
    "norm": Vector(6),
}


def mine(*rules: tuple[str, StorageFormat]) -> Recipe:
    return Recipe("mine", tuple(Rule(*rule) for rule in (*rules, ("*", StorageFormat(4, 32)))), own=True)


def test_formats_of_the_matrices_of_a_program() -> None:
    recipe = mine(("embed", StorageFormat(8)), ("*.[qkv]_proj", FLOAT16))
    found = recipe.formats(WEIGHTS)
    assert {name: (storage.bits, storage.group_size) for name, storage in found.items()} == {
        "embed": (8, 0),
        "layers.0.qkv_proj": (16, 0),
        "layers.0.o_proj": (4, 32),
    }
    assert recipe.group_sizes(WEIGHTS)["layers.0.o_proj"] == 32


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            ("*.k_proj", StorageFormat(8, 32)),
            "stores layers.0.q_proj as 4 bits in groups of 32 and layers.0.k_proj as 8 bits in groups of 32, which "
            "are one matrix; give them one rule",
        ),
        (("*.o_proj", StorageFormat(4)), "rows of 7 end in half a byte; give it groups"),
        (
            ("*.o_porj", FLOAT16),
            r"rule '\*.o_porj' of recipe mine is the first match of no matrix .* has embed, ",
        ),
    ],
)
def test_rules_that_do_not_fit_the_model(rule: tuple[str, StorageFormat], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mine(rule).formats(WEIGHTS)


def test_a_preset_may_have_rules_for_what_a_model_does_not_have() -> None:
    assert Recipe.named("int4-mixed", 32).formats(WEIGHTS)["embed"] == StorageFormat(8)


@pytest.mark.parametrize(
    ("name", "group_size", "message"),
    [
        (
            "int3",
            32,
            "unknown quantization 'int3': choose one of none, int8, int8-channel, int4, int4-mixed, phone",
        ),
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


@pytest.mark.parametrize("name", ["hrm_text_h1l4_noprefix", "fold_pythia", "ouro_tiny"])
def test_a_phone_has_attention_in_8_bits_whatever_its_parts_are_called(
    name: str, parity_folder: Path
) -> None:
    weights = read(parity_folder / name).program.weights
    found = Recipe.named("phone", 64).formats(weights)
    matrices = {each.rpartition(".")[2]: storage for each, storage in found.items()}
    fine = {each for each, storage in matrices.items() if storage == StorageFormat(8)}
    assert {"embed", "head", "qkv_proj", "o_proj"} & set(matrices) == fine
    assert {matrices[each] for each in set(matrices) - fine} == {StorageFormat(4, 64)}
