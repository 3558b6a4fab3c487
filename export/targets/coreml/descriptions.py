"""What Xcode shows of a package: its author, version and licence, and texts for every input, output and state.

Texts follow from the model and the recipe alone, so that a package is the same whenever it is written; each is short,
because `edgeloop audit` accepts none that is longer than 256 bytes.
"""

from __future__ import annotations

from typing import Any

from ....quant.recipe import Recipe
from ....runtime.model.facts import stored_layers
from ....runtime.version import VERSION
from .plan import PackagePlan

AUTHOR = f"edgeloop {VERSION}"
LICENSE = "That of the checkpoint whose weights it holds; edgeloop itself is Apache-2.0."
_POSITION = "position of the first token: how many tokens the states hold"
_TYPES = {"types": "the type of each token"}
_TOKEN = {"ids": "the token", **_TYPES, "position": _POSITION}
_TEXTS: dict[str, dict[str, str]] = {
    "decode_all": {
        **_TOKEN,
        "next": "its state after the last depth",
        "logits": "a score for each token of the vocabulary",
    },
    "prefill": {
        "ids": "the next tokens of a prompt, padded with any at the end",
        **_TYPES,
        "position": _POSITION,
        "next": "their states after the last depth, for head",
    },
    "embed": {**_TOKEN, "hidden": "the state that enters depth 0"},
    "decode": {
        "hidden": "a token's state that enters depth {depth}",
        "position": _POSITION,
        "next": "its state after depth {depth}",
    },
    "kvfill": {
        "hidden": "the state of a token that left after depth {depth}",
        "position": _POSITION,
        "next": "the same state; K/V of the deeper depths are in the states",
    },
    "head": {
        "hidden": "a token's state after the depth that it left at",
        "position": _POSITION,
        "logits": "a score for each token of the vocabulary",
    },
}
"""By function, without the number of its depth: the texts of its features."""
_TEXT = {
    "ids": "the tokens of a text, padded with any at the end",
    **_TYPES,
    "tokens": "how many tokens the text has",
}
_AT_ONCE: dict[str, dict[str, str]] = {
    "decode_all": {
        **_TEXT,
        "next": "their states after the last depth",
        "logits": "for each token a score for each of the vocabulary",
    },
    "embed": {**_TEXT, "hidden": "the states that enter depth 0"},
    "decode": {
        **_TEXT,
        "hidden": "the states that enter depth {depth}",
        "next": "the states after depth {depth}",
    },
    "head": {
        **_TEXT,
        "hidden": "the states after the depth that is read out",
        "logits": "for each token a score for each of the vocabulary",
    },
}
"""The same of models that read a text at once."""


def describe(model: Any, plan: PackagePlan, recipe: Recipe) -> None:
    """Fill in the descriptions of a Model message."""
    metadata = model.description.metadata
    metadata.shortDescription = _model(plan, recipe)
    metadata.author, metadata.license, metadata.versionString = AUTHOR, LICENSE, VERSION
    for function in model.description.functions:
        stem, _, depth = function.name.rpartition("_d")
        texts = (_AT_ONCE if plan.at_once else _TEXTS)[stem if depth.isdigit() else function.name]
        for feature in (*function.input, *function.output):
            feature.shortDescription = texts[feature.name].format(depth=depth)
        for state in function.state:
            state.shortDescription = _state(plan, state.name)


def _model(plan: PackagePlan, recipe: Recipe) -> str:
    program = plan.program
    groups = f" in groups of {recipe.group_size}" if recipe.group_size else ""
    return (
        f"Recursive transformer ({program.family}): {stored_layers(program)} layers stored, "
        f"{program.applied_layers} applied, {program.depths} depths, width {program.width}, a context of "
        f"{program.context_length} tokens; weights {recipe.name}{groups}"
    )


def _state(plan: PackagePlan, name: str) -> str:
    program, (stage, side, *number) = plan.program, name.split("_")
    layers = {"prologue": "before the loop", "block": "of the loop", "epilogue": "after the loop"}[stage]
    _, heads, _, width = plan.states[name]
    kind = f" with {heads} K heads of {width}" if number or f"{name}_1" in plan.states else ""
    rows = (
        "a row for each layer and depth"
        if stage == "block" and program.depths > 1
        else "a row for each layer"
    )
    if stage == "block" and program.kv_slots < program.depths:
        rows = "a row for each layer, which all depths read"
    return f"{side} of the layers {layers}{kind}: {rows}, of {plan.capacity} tokens"
