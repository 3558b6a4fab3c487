"""The table of model families: first match wins."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import cast

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..family import Family, Reading


@dataclass(frozen=True)
class FamilyEntry:
    """One family: its module and class, imported when needed, and what its checkpoints have."""

    name: str
    module: str
    cls: str
    mark: str

    def load(self) -> Family:
        """Import the family's module and return an instance of its class."""
        return cast(Family, getattr(importlib.import_module(f".{self.module}", __name__), self.cls)())


FAMILIES = (
    FamilyEntry("edgeloop", "edgeloop", "EdgeloopFamily", "model_type edgeloop"),
    FamilyEntry("mor", "mor", "MorFamily", "a conf.yaml with recursive.enable"),
    FamilyEntry("mobilellm", "mobilellm", "MobileLlmFamily", "layer_sharing"),
    FamilyEntry("ouro", "ouro", "OuroFamily", "model_type ouro"),
    FamilyEntry("nanbeige", "nanbeige", "NanbeigeFamily", "model_type nanbeige"),
    FamilyEntry(
        "retrofit",
        "retrofit",
        "RetrofitFamily",
        "model_type huginn_raven over the layers of a Llama or OLMo 2",
    ),
    FamilyEntry("parcae", "parcae", "ParcaeFamily", "_class_name ParcaeConfig"),
    FamilyEntry("huginn", "huginn", "HuginnFamily", "model_type huginn_raven"),
    FamilyEntry("loopcoder", "loopcoder", "LoopCoderFamily", "model_type iquestloopcoder or iquestpltcoder"),
    FamilyEntry("hrm_text", "hrm_text", "HrmTextFamily", "model_type hrm_text"),
    FamilyEntry("gpt_neox", "gpt_neox", "GptNeoxFamily", "GPTNeoXForCausalLM with repeated layers"),
    FamilyEntry("qwen", "qwen", "QwenFamily", "Qwen2ForCausalLM or Qwen3ForCausalLM with repeated layers"),
    FamilyEntry(
        "gemma",
        "gemma",
        "GemmaFamily",
        "GemmaForCausalLM, Gemma2ForCausalLM or Gemma3ForCausalLM with repeated layers",
    ),
    FamilyEntry("olmo2", "olmo2", "Olmo2Family", "Olmo2ForCausalLM with repeated layers"),
    FamilyEntry("albert", "albert", "AlbertFamily", "model_type albert"),
    FamilyEntry(
        "llama", "llama", "LlamaFamily", "LlamaForCausalLM or MistralForCausalLM with repeated layers"
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
    raise CheckpointError(
        f"{checkpoint.folder}: no family reads model_type {found['model_type']!r} with architectures "
        f"{found['architectures']!r}; supported: " + ", ".join(f"{e.name} ({e.mark})" for e in FAMILIES)
    )


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
    """Is it the name of rotary frequencies, which old checkpoints store? They follow from rope_theta."""
    return name.endswith("rotary_emb.inv_freq")
