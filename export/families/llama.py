"""Plain Llama folders whose layers repeat: a recursive model saved as if unrolled. Mistral is Llama with a window."""

from __future__ import annotations

import logging

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..family import Reading
from .llama_config import read_llama_config
from .llama_layers import read_layers
from .llama_ties import LlamaNames, Run, plan_from_ties
from .lora_scale import adapter_scale
from .near_ties import broken_loop, ordinary

logger = logging.getLogger(__name__)

CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


class LlamaFamily:
    """LlamaForCausalLM or MistralForCausalLM; what repeats is found in the weights."""

    name = "llama"

    def matches(self, checkpoint: Checkpoint) -> bool:
        kind, architectures = (checkpoint.config.get(key) for key in ("model_type", "architectures"))
        return isinstance(kind, str) and kind in CLASSES and architectures in (None, [CLASSES[kind]])

    def read(self, checkpoint: Checkpoint) -> Reading:
        config = read_llama_config(checkpoint)
        names = LlamaNames(checkpoint)
        if names.layers != config.layers:
            raise CheckpointError(
                f"{checkpoint.folder}: config.json says num_hidden_layers {config.layers}, the weights have "
                f"{names.layers} layers; they do not belong together"
            )
        return read_layers(names, config, _plan(names), self.name, scale=adapter_scale(checkpoint))


def _plan(names: LlamaNames) -> list[Run]:
    """What repeats; CheckpointError, or a warning where some does, says what keeps more from repeating."""
    plan = plan_from_ties(names)
    covered = sum(len(run.applied) * len(run.applied[0]) for run in plan if len(run.applied[0]) > 1)
    broken = broken_loop(names, covered)
    if broken and plan:
        logger.warning("%s: %s; they are stored one by one", names.checkpoint.folder, broken)
    elif broken:
        raise CheckpointError(
            f"{names.checkpoint.folder}: {broken}; a block is shared as a whole: take the weights from before these "
            "were changed"
        )
    elif not plan:
        raise CheckpointError(f"{names.checkpoint.folder}: {ordinary(names)}")
    return plan
