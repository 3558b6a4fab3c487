"""The table of model families: first match wins."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import cast

from ...runtime.errors import CheckpointError
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Family, Reading
from .refused import refusal


@dataclass(frozen=True)
class FamilyEntry:
    """One family: its module and class, imported when needed, what its checkpoints have, and what says the loop."""

    name: str
    module: str
    cls: str
    mark: str
    loop: str

    def load(self) -> Family:
        """Import the family's module and return an instance of its class."""
        return cast(Family, getattr(importlib.import_module(f".{self.module}", __name__), self.cls)())


EQUAL = "the weights: layers that are equal"
FAMILIES = (
    FamilyEntry(
        "edgeloop", "edgeloop", "EdgeloopFamily", "model_type edgeloop", "config.json: num_recursions"
    ),
    FamilyEntry(
        "mor",
        "mor",
        "MorFamily",
        "a conf.yaml with recursive.enable",
        "conf.yaml: recursive, and checked in the weights",
    ),
    FamilyEntry(
        "mobilellm",
        "mobilellm",
        "MobileLlmFamily",
        "layer_sharing",
        "config.json: layer_sharing, each layer twice",
    ),
    FamilyEntry("ouro", "ouro", "OuroFamily", "model_type ouro", "config.json: total_ut_steps"),
    FamilyEntry(
        "nanbeige",
        "nanbeige",
        "NanbeigeFamily",
        "model_type nanbeige",
        "config.json: num_loops, or loop_loss_weights",
    ),
    FamilyEntry(
        "retrofit",
        "retrofit",
        "RetrofitFamily",
        "model_type huginn_raven over the layers of a Llama or OLMo 2",
        "config.json: mean_recurrence, or any other number",
    ),
    FamilyEntry(
        "parcae",
        "parcae",
        "ParcaeFamily",
        "_class_name ParcaeConfig",
        "config.json: mean_recurrence, or any other number",
    ),
    FamilyEntry(
        "huginn",
        "huginn",
        "HuginnFamily",
        "model_type huginn_raven",
        "config.json: mean_recurrence, or any other number",
    ),
    FamilyEntry(
        "loopcoder",
        "loopcoder",
        "LoopCoderFamily",
        "model_type iquestloopcoder or iquestpltcoder",
        "config.json: loop_num or plt_num_loops",
    ),
    FamilyEntry(
        "hrm_text", "hrm_text", "HrmTextFamily", "model_type hrm_text", "config.json: H_cycles and L_cycles"
    ),
    FamilyEntry("gpt_neox", "gpt_neox", "GptNeoxFamily", "GPTNeoXForCausalLM with repeated layers", EQUAL),
    FamilyEntry(
        "qwen", "qwen", "QwenFamily", "Qwen2ForCausalLM or Qwen3ForCausalLM with repeated layers", EQUAL
    ),
    FamilyEntry(
        "gemma",
        "gemma",
        "GemmaFamily",
        "GemmaForCausalLM, Gemma2ForCausalLM or Gemma3ForCausalLM with repeated layers",
        EQUAL,
    ),
    FamilyEntry("olmo2", "olmo2", "Olmo2Family", "Olmo2ForCausalLM with repeated layers", EQUAL),
    FamilyEntry(
        "albert",
        "albert",
        "AlbertFamily",
        "model_type albert",
        "config.json: num_hidden_layers over num_hidden_groups",
    ),
    FamilyEntry(
        "llama",
        "llama",
        "LlamaFamily",
        "LlamaForCausalLM or MistralForCausalLM with repeated layers",
        EQUAL,
    ),
)


def find_family(checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint, by its configs; CheckpointError says what was found and what is supported."""
    for entry in FAMILIES:
        family = entry.load()
        if family.matches(checkpoint):
            return family
    found = {key: checkpoint.config.get(key) for key in ("model_type", "architectures")}
    if found["model_type"] is None and "error" in checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} is an answer of a server that did not send the file "
            f"({checkpoint.config['error']!r:.200}); download it again"
        )
    if missing := refusal(checkpoint.config):
        raise CheckpointError(
            f"{checkpoint.folder}: model_type {shown(found['model_type'])} is not supported: {missing}"
        )
    raise CheckpointError(
        f"{checkpoint.folder}: no family reads model_type {found['model_type']!r} with architectures "
        f"{found['architectures']!r}; supported: " + ", ".join(f"{e.name} ({e.mark})" for e in FAMILIES)
    )


def loop_said_by(family: str) -> str:
    """Return what says how often the layers of a model of ``family`` run: a key of its config, or the weights."""
    return next(entry.loop for entry in FAMILIES if entry.name == family)


def read_checkpoint(checkpoint: Checkpoint) -> Reading:
    """Return the checkpoint as its family reads it; CheckpointError for what the family does not understand."""
    reading = find_family(checkpoint).read(checkpoint)
    if name := min(checkpoint.adapter_names - reading.used, default=None):
        matrix = re.sub(r"\.lora_[AB]\..*", ".weight", name)
        if matrix in checkpoint.names:
            raise CheckpointError(
                f"{checkpoint.adapter_folder}: {name} changes {matrix}, and a LoRA is read on the matrices of layers "
                "only; add it to that matrix in the model, and save the adapter without it"
            )
        raise CheckpointError(
            f"{checkpoint.adapter_folder}: {name} changes nothing that {checkpoint.folder} has; give the model that "
            "the adapter was trained on"
        )
    return reading


def unused(checkpoint: Checkpoint, reading: Reading) -> list[str]:
    """Return the tensors of the checkpoint that the reading leaves out, sorted; rotary frequencies aside."""
    return sorted(n for n in checkpoint.names - reading.used if not is_buffer(n))


def is_buffer(name: str) -> bool:
    """Return whether it is the name of rotary frequencies, which old checkpoints store. They follow from rope_theta."""
    return name.endswith("rotary_emb.inv_freq")
