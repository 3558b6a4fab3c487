"""Ouro (LoopLM): the whole stack is looped, with the final norm after every pass."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from msgspec import structs

from ...runtime.errors import CheckpointError
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_values import number, size
from .llama_config import read_llama_config
from .llama_layers import read_layers
from .llama_names import SANDWICH_NORMS, LlamaNames
from .lora_scale import adapter_scale
from .ties import MAX_LAYERS, TiedRun

logger = logging.getLogger(__name__)


class OuroFamily:
    """model_type "ouro"; early_exit_gate, where there is one, is the exit gate."""

    name = "ouro"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is an Ouro config."""
        return bool(checkpoint.config.get("model_type") == "ouro")

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        where = str(checkpoint.folder / "config.json")
        config = read_llama_config(checkpoint, ("total_ut_steps", "early_exit_threshold", "auto_map"))
        repeats = size(checkpoint.config, "total_ut_steps", where)
        names = LlamaNames(checkpoint, SANDWICH_NORMS)
        if names.layers != config.layers or repeats > MAX_LAYERS:
            raise CheckpointError(
                f"{where}: num_hidden_layers {config.layers} × total_ut_steps {repeats}, while the weights have "
                f"{names.layers} layers; wanted equal numbers of layers and at most {MAX_LAYERS} steps"
            )
        if number(checkpoint.config, "early_exit_threshold", where, 1.0) < 1.0:
            logger.warning(
                "early_exit_threshold below 1 is not read: every token runs all %d steps unless generation is "
                "run with --exit gate:q",
                repeats,
            )
        plan = [TiedRun(tuple((layer,) * repeats for layer in range(names.layers)))]
        shapes = {"weight": (1, config.hidden_size), "bias": (1,)}
        gate = {key: f"{names.prefix}model.early_exit_gate.{key}" for key in shapes}
        gated = not checkpoint.names.isdisjoint(gate.values())
        scale = adapter_scale(checkpoint)
        read = gate.values() if gated else ()
        for key in shapes if gated else ():
            checkpoint.require(gate[key], shapes[key])
        reading = read_layers(names, config, plan, self.name, scale=scale, loop_norm=True, read=read)
        if not gated:
            return reading
        return replace(
            reading,
            program=structs.replace(reading.program, exit_gate=True),
            heads={
                "gate.weight": lambda: checkpoint.tensor(gate["weight"])[0],
                "gate.bias": partial(checkpoint.tensor, gate["bias"]),
            },
        )
