"""What recursions have of their own in the Mixture-of-Recursions code (``relaxation`` of conf.yaml), and where it lies.

``lora`` and ``dora`` are PEFT's. ``recursion_encoding``: a vector [D] multiplies what a recursion gives; its last layer
lies in ``model.layers.{i}.block``, beside ``model.layers.{i}.recursion_encoding``. ``adaption_prompt``: each attention
adds gate · o(softmax(q K_pᵀ / √d) V_p), K_p and V_p those of P learned tokens without a position (LLaMA-Adapter, arXiv
2303.16199); it lies in ``self_attn.model``, beside ``self_attn.adaption_prompt`` [1, P, D] and ``adaption_gate`` [1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from msgspec import structs

from ...runtime.errors import CheckpointError
from ...runtime.model.ops import Add, Attend, AttendLearned, Linear, Op, with_names
from ...runtime.model.program import Stage
from ...runtime.model.weights import Matrix, Vector, Weight
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Loader, Reading
from .config_values import size
from .llama_names import ATTENTION, LlamaNames
from .lora import Scale
from .lora_scale import adapter_scale, training_scale
from .mor_config import enabled, section
from .ties import TiedRun

LENGTHS = ".lora_magnitude_vector."


def read_method(
    checkpoint: Checkpoint, training: Mapping[str, Any], where: str
) -> tuple[str | None, Scale | None]:
    """Return ``relaxation.method``, which is known, or None where it is off; and the scale of a LoRA.

    CheckpointError where the weights are not of that method.
    """
    if not enabled(training, "relaxation", where):
        return None, adapter_scale(checkpoint)
    relaxation = section(training, "relaxation", where)
    method: str = relaxation["method"]
    if method in ("lora", "dora"):
        lengths = sorted(name for name in checkpoint.names if LENGTHS in name)
        if method == "dora" and not lengths:
            raise CheckpointError(
                f"{where}: relaxation.method is 'dora', and no weight is a lora_magnitude_vector; wanted the whole "
                "state_dict, as the authors' code saves it"
            )
        if method == "lora" and lengths:
            raise CheckpointError(
                f"{where}: relaxation.method is 'lora', and the weights have {lengths[0]}; wanted dora"
            )
        settings = section(relaxation, "lora", where, "relaxation.")
        return method, training_scale(checkpoint, settings, method == "dora")
    if method == "adaption_prompt":
        _check_prompt_config(checkpoint)
    return method, None


def _check_prompt_config(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for an adapter_config.json beside the weights that is not that of prompts."""
    found = checkpoint.adapter_config or {}
    if (kind := found.get("peft_type", "ADAPTION_PROMPT")) != "ADAPTION_PROMPT":
        raise CheckpointError(
            f"{checkpoint.adapter_folder / 'adapter_config.json'}: peft_type is {shown(kind)}, and conf.yaml has "
            "relaxation.method adaption_prompt; wanted the adapter's own settings, or none"
        )


class EncodedNames(LlamaNames):
    """The layers of a checkpoint whose recursions end with an encoding: ``encoded`` are those that have one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.encoded: frozenset[int] = frozenset()

    def layer_stem(self, layer: int) -> str:
        """Return the part of a layer's names below ``model.layers.``."""
        return f"{layer}.block" if layer in self.encoded else str(layer)

    def encoding(self, layer: int) -> str | None:
        """Return the name of the vector that multiplies what a layer gives, if it has one."""
        return f"{self.inside}{layer}.recursion_encoding" if layer in self.encoded else None


class PromptNames(LlamaNames):
    """The layers of a checkpoint whose attentions have learned prompts; those without one have Llama's names."""

    def module(self, layer: int, projection: str) -> str:
        """Return the name of a projection's module."""
        name = super().module(layer, projection)
        if projection not in ATTENTION or self.prompt(layer) is None:
            return name
        return name.replace(".self_attn.", ".self_attn.model.")

    def prompt(self, layer: int) -> tuple[str, str] | None:
        """Return the names of the prompt [1, P, D] and of its gate [1], or None."""
        prompt, gate = (f"{self.inside}{layer}.self_attn.adaption_{part}" for part in ("prompt", "gate"))
        return None if self.checkpoint.names.isdisjoint((prompt, gate)) else (prompt, gate)

    @property
    def prompts(self) -> list[str]:
        """The names of all prompts and gates."""
        return [name for layer in range(self.layers) for name in self.prompt(layer) or ()]


def with_prompts(reading: Reading, names: PromptNames, plan: Sequence[TiedRun], tokens: int) -> Reading:
    """Return the reading with the learned prompts of ``tokens`` tokens beside each attention.

    Each depth of the loop becomes a block of its own, over weights that all of them share: K/V of prompts are
    constants of a depth. CheckpointError for a prompt that is missing or of another shape.
    """
    if not names.prompts:
        raise CheckpointError(
            f"{names.checkpoint.folder}: conf.yaml has relaxation.method adaption_prompt, and no layer has "
            "self_attn.adaption_prompt; wanted pytorch_model.bin, as the authors' code saves it"
        )
    added = _Prompts(reading, names, plan, tokens)
    program = reading.program
    loop = program.loop
    changed = structs.replace(
        program,
        prologue=added.stage(program.prologue),
        loop=structs.replace(
            loop,
            blocks=tuple(added.stage(loop.blocks[number]) for number in loop.schedule),
            schedule=tuple(range(program.depths)),
        ),
    )
    changed = structs.replace(
        changed, epilogue=added.stage(program.epilogue), weights=program.weights | added.weights
    )
    return replace(reading, program=changed, tensors={**reading.tensors, **added.tensors})


class _Prompts:
    """Adds prompts to stages, which are given in the order in which they run."""

    def __init__(self, reading: Reading, names: PromptNames, plan: Sequence[TiedRun], tokens: int) -> None:
        self.weights: dict[str, Weight] = {}
        self.tensors: dict[str, Loader] = {}
        self._reading, self._names, self._plan, self._tokens = reading, names, plan, tokens
        self._applied = Counter[str]()

    def stage(self, stage: Stage) -> Stage:
        """Return the stage with prompts."""
        through_o = {op.x: op.weight for op in stage.ops if isinstance(op, Linear)}
        ops, renamed = list[Op](), dict[str, str]()
        for op in stage.ops:
            if isinstance(op, Attend):
                ops.append(op)
                ops += self._beside(op, through_o[op.y].removesuffix(".o_proj"), renamed)
            else:
                ops.append(with_names(op, renamed) if isinstance(op, Linear) and op.x in renamed else op)
        return structs.replace(stage, ops=tuple(ops))

    def _beside(self, op: Attend, prefix: str, renamed: dict[str, str]) -> Iterator[Op]:
        """Yield the ops that add the prompt of the next application of the layer ``prefix`` to what ``op`` writes."""
        depth = self._applied[prefix]
        self._applied[prefix] += 1
        _, segment, _, layer = prefix.split(".")
        stored = self._names.prompt(self._plan[int(segment)].applied[int(layer)][depth])
        if stored is None:
            return
        keys, values = (self._weight(op, prefix, depth, stored, side) for side in "kv")
        learned, summed = f"{op.y}_learned", f"{op.y}_prompted"
        yield AttendLearned(op.q, learned, keys, values, op.heads, op.kv_heads, op.head_dim, op.scale)
        yield Add(op.y, learned, summed)
        renamed[op.y] = summed

    def _weight(self, op: Attend, prefix: str, depth: int, stored: tuple[str, str], side: str) -> str:
        name, tensors = f"{prefix}.prompt_{side}_{depth}", self._reading.tensors
        self.weights[name] = Vector(op.kv_heads * op.head_dim, self._tokens)
        matrix = self._reading.program.weights[f"{prefix}.qkv_proj"]
        assert isinstance(matrix, Matrix)
        checkpoint, (prompt, gate) = self._names.checkpoint, stored
        checkpoint.require(prompt, (1, self._tokens, matrix.columns))
        checkpoint.require(gate, (1,))
        load = tensors[f"{prefix}.{side}_proj.weight"]
        self.tensors[f"{name}.weight"] = partial(
            _projected, checkpoint, prompt, load, gate if side == "v" else None
        )
        return name


def _projected(checkpoint: Checkpoint, prompt: str, load: Loader, gate: str | None) -> torch.Tensor:
    """Return K or V of a prompt, [P, K · d]; V is multiplied by its gate."""
    rows = checkpoint.tensor(prompt)[0] @ load().T
    return rows if gate is None else rows * checkpoint.tensor(gate)


def prompt_tokens(training: Mapping[str, Any], where: str) -> int:
    """Return ``relaxation.prompt.len``; CheckpointError for none."""
    relaxation = section(training, "relaxation", where)
    return size(section(relaxation, "prompt", where, "relaxation."), "len", f"{where}: relaxation.prompt")
