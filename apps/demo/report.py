"""What a trained demo model is worth, measured on the checkpoint as saved: ``training.json``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .drafts import acceptance, agreement, prompts
from .model import DemoModel
from .recipe import TrainingRecipe, validation_loss
from .routed import RoutedModel
from .state import Log
from .texts import Tokens

TEMPERATURE = 0.8


def measure(model: DemoModel, text: Tokens, length: int) -> dict[str, Any]:
    """Losses, perplexities and bits a byte of the tales' validation text, the held-out dialogues' loss, drafts."""
    loss = validation_loss(model, text.validation, length)
    spoken = validation_loss(model, text.dialogues, length)
    share = len(text.validation) / text.validation_bytes / math.log(2)
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_tokens": len(text.validation),
        "validation_loss": [round(x, 4) for x in loss],
        "validation_perplexity": [round(math.exp(x), 2) for x in loss],
        "bits_per_byte": [round(x * share, 4) for x in loss],
        "dialogue_perplexity": [round(math.exp(x), 2) for x in spoken],
    }
    if not isinstance(model, RoutedModel):
        begin = prompts(text.validation)
        found |= {
            "validation_agreement": [round(x, 3) for x in agreement(model, text.validation, length)],
            "drafts_greedy": [round(x, 3) for x in acceptance(model, begin, 0.0)],
            "drafts_sampled": [round(x, 3) for x in acceptance(model, begin, TEMPERATURE)],
        }
    return found


def report(model: DemoModel, recipe: TrainingRecipe, text: Tokens, out: Path, log: Log) -> dict[str, Any]:
    """Measure the checkpoint in ``out``, write its training.json and return what was found."""
    model.load_state_dict(load_file(out / "model.safetensors"))
    found = {
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "found": measure(model, text, recipe.length),
    }
    (out / "training.json").write_text(json.dumps({**found, "log": log}, indent=1) + "\n", encoding="utf-8")
    return found
