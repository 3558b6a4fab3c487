"""The choice within a budget against all choices that there are; costs against the same codes in another way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from editing import read
from tiny import VOCAB, looped_layer

from edgeloop.export.heads import load_heads
from edgeloop.export.stored import write_weights
from edgeloop.quant.pack import quantize
from edgeloop.quant.recipe import Recipe, Rule, StorageFormat
from edgeloop.quant.recipe_file import read_recipe, recipe_text
from edgeloop.quant.scales import searched
from edgeloop.quant.sensitivity import FORMATS, Option, Sensitivity, choose, measure
from edgeloop.runtime.decode.divergence import diverge
from edgeloop.runtime.decode.policy_choice import choose_policy
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.stored import map_tensors

WEIGHTS = 1000


def matrices(seed: int, count: int = 6) -> list[Sensitivity]:
    """Some with costs by chance, of which more bits are mostly fewer."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        weights = WEIGHTS * int(random.integers(1, 6))
        costs = np.sort(random.exponential(1, (3, 2)), axis=0)[::-1] * random.exponential(1)
        bits = (weights * np.array([4.125, 4.5, 8.0625])).astype(int)
        options = [
            Option(storage, int(size), tuple(cost.tolist()))
            for storage, size, cost in zip(FORMATS, bits, costs, strict=True)
        ]
        found.append(Sensitivity(f"m{number}", (f"m{number}",), weights, tuple(options)))
    return found


def outcome(found: list[Sensitivity], recipe: Recipe) -> tuple[int, float]:
    """Bits and cost of a recipe."""
    taken = [
        next(option for option in each.options if option.storage == recipe.storage(each.name))
        for each in found
    ]
    return sum(option.bits for option in taken), sum(option.cost for option in taken)


@pytest.mark.parametrize("seed", range(12))
def test_a_choice_is_the_best_of_all_that_are_as_small(seed: int) -> None:
    found = matrices(seed)
    weights = sum(each.weights for each in found)
    for budget in (4.2, 4.6, 5.0, 6.5, 8.1):
        bits, cost = outcome(found, choose(found, budget, "measured"))
        assert bits <= budget * weights
        every = [
            (sum(option.bits for option in options), sum(option.cost for option in options))
            for options in product(*(each.options for each in found))
        ]
        # Of a hull's corner nothing that is no larger costs less; behind one there may be room that no step fits.
        best = min(other for size, other in every if size <= budget * weights)
        step = max(each.options[0].cost - each.options[-1].cost for each in found)
        assert best <= cost + 1e-12
        assert cost <= best + step
        if budget == 8.1:
            assert cost == pytest.approx(best)


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(
        UsageError, match=r"a budget of 4 bits a weight, and the smallest formats take 4\.125"
    ):
        choose(matrices(0), 4.0, "measured")


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = choose(matrices(1), 5.0, "measured")
    assert len(recipe.rules) > 1
    (tmp_path / "any.toml").write_text(recipe_text(recipe, "made for a test"))
    assert read_recipe(tmp_path / "any.toml") == recipe
    floats = Recipe("mine", (Rule("embed", StorageFormat(16)), Rule("*", StorageFormat(4, 64))), own=True)
    (tmp_path / "any.toml").write_text(recipe_text(floats))
    assert read_recipe(tmp_path / "any.toml") == floats


def test_costs_are_those_of_a_model_of_which_one_matrix_is_codes(tmp_path: Path) -> None:
    """Measured again with weights that were written as an export writes them, window by window."""
    reading = read(looped_layer(tmp_path / "looped", max_position_embeddings=32))
    program = reading.program
    write_weights(reading, Recipe.named("none", 32), tmp_path / "floats")
    floats = map_tensors(tmp_path / "floats")
    ids = np.random.default_rng(0).integers(0, VOCAB, 81)
    formats = StorageFormat(4, 32), StorageFormat(8, 0)
    steps: list[float] = []
    found = measure(program, floats, ids, lambda step, part: steps.append(part), formats)
    layer = "segments.0.layers.0"
    assert [each.name for each in found] == [
        "embed",
        *(f"{layer}.{m}_proj" for m in ("qkv", "o", "gate_up", "down")),
    ]
    assert steps == sorted(steps)
    for each in found:
        assert each.weights == floats[f"{each.name}.weight"].size
        assert each.options[1].cost < each.options[0].cost / 10
        for option, storage in zip(each.options, formats, strict=True):
            rules = (*(Rule(part, storage) for part in each.parts), Rule("*", StorageFormat(32)))
            recipe, path = Recipe("one", rules, own=True), tmp_path / f"{each.name}-{storage.bits}"
            weight = torch.from_numpy(np.array(floats[f"{each.name}.weight"]))
            codes = quantize(weight, storage.bits, storage.group_size, searched)
            write_weights(reading, recipe, path, {each.name: codes})
            stored = map_tensors(path)
            size = sum(stored[f"{each.name}.{side}"].nbytes for side in ("codes", "scales"))
            assert option.bits == 8 * size
            model, base = (
                SequentialDecoder(backend, backend.new_cache(1, 32))
                for backend in (
                    ReferenceBackend(program, stored, recipe.group_sizes(program.weights)),
                    ReferenceBackend(program, floats, 0),
                )
            )
            wanted = diverge(model, base, ids, 32).divergence.sum(0) / 80
            np.testing.assert_allclose(option.divergence, wanted, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("kind", ["mor-expert", "mor-token"])
def test_a_routed_model_costs_what_it_does_as_its_router_decides(
    kind: str, tiny_once: Callable[[str], Path], tmp_path: Path
) -> None:
    """Beside a run of whole windows token by token under the router."""
    reading = read(tiny_once(kind))
    program, heads = reading.program, {name: head.numpy() for name, head in load_heads(reading).items()}
    write_weights(reading, Recipe.named("none", 32), tmp_path / "floats")
    floats, storage = map_tensors(tmp_path / "floats"), StorageFormat(4, 32)
    ids = np.random.default_rng(0).integers(0, program.vocab_size, 21)
    found = {each.name: each for each in measure(program, floats, ids, lambda *_: None, [storage], heads)}
    name = next(name for name in found if name.startswith("segments.1.") and name.endswith("down_proj"))
    weight = torch.from_numpy(np.array(floats[f"{name}.weight"]))
    codes = quantize(weight, 4, 32, searched)
    rules = (*(Rule(part, storage) for part in found[name].parts), Rule("*", StorageFormat(32)))
    write_weights(reading, Recipe("one", rules, own=True), tmp_path / "codes", {name: codes})
    rows = []
    for path, sizes in ((tmp_path / "floats", 0), (tmp_path / "codes", 32)):
        backend = ReferenceBackend(program, map_tensors(path), sizes)
        policy = choose_policy(program, heads, {})
        decoder = SequentialDecoder(backend, backend.new_cache(1, 20), policy, heads)
        logits = np.concatenate([logits.copy() for logits, _ in decoder.every(ids[:20])]).astype(np.float64)
        rows.append(torch.from_numpy(logits).log_softmax(-1))
    wanted = float((rows[0].exp() * (rows[0] - rows[1])).sum(-1).mean())
    assert found[name].options[0].divergence == pytest.approx([wanted], rel=1e-3)
