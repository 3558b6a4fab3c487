"""Looped and shared models that no family reads are refused by a line that says what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from editing import edit, read

from edgeloop.export.families import FAMILIES, loop_said_by
from edgeloop.export.families.refused import refusal
from edgeloop.runtime.errors import CheckpointError

CONFIGS: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "inkling2_loop_text"},
        "Inkling 2's loop: attention over the residuals of earlier blocks",
    ),
    ({"model_type": "other", "loop_layer_index_start": 2, "loop_num_passes": 3}, "Inkling 2's loop"),
    ({"model_type": "zamba2"}, "Mamba layers, whose recurrent state is no K/V"),
    ({"model_type": "mamba2"}, "Mamba layers"),
    ({"model_type": "nemotron_h"}, "Mamba layers"),
    ({"model_type": "masa_llama"}, "mixtures of shared atoms"),
    ({"model_type": "other", "masa": {"num_atoms": 2}}, "mixtures of shared atoms"),
    ({"model_type": "mos_llama"}, "LoRAs whose rows come from shared pools"),
    ({"model_type": "roast_llama", "roast": {"P": 45007}}, "tiles of one hashed array"),
    ({"model_type": "widenet"}, "one MLP of shared experts for all depths"),
    ({"model_type": "gemma3n_text"}, "share K/V without a loop"),
    ({"model_type": "gemma3"}, "a vision tower: its text model alone"),
]


@pytest.mark.parametrize(("config", "line"), CONFIGS)
def test_what_is_missing(tiny: Callable[[str], Path], config: dict[str, Any], line: str) -> None:
    folder = tiny("llama")
    edit(folder / "config.json", architectures=None, **config)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert f"model_type '{config['model_type']}' is not supported: " in str(caught.value)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "mosaic_gpt"}, {"model_type": 3}, {"loop_num_passes": 3}]
)
def test_others_are_not_known(config: dict[str, Any]) -> None:
    assert refusal(config) is None


def test_every_family_says_where_its_loop_is() -> None:
    said = {entry.name: loop_said_by(entry.name) for entry in FAMILIES}
    assert said["llama"] == said["gemma"] == "the weights: layers that are equal"
    assert said["nanbeige"] == "config.json: num_loops, or loop_loss_weights"
    assert all(line.startswith(("the weights", "config.json: ", "conf.yaml: ")) for line in said.values())
