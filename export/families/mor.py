"""Recursive checkpoints of the Mixture-of-Recursions and Relaxed Recursive Transformers authors' code.

The recursion is described in the training config, conf.yaml; config.json is a plain Llama config, and the
weights are written out as if unrolled, tied tensors aliased. Where tokens are routed (``mor.enable``), the
layers of a recursion are inside blocks: ``mor_routing.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from msgspec import structs

from ...runtime.errors import CheckpointError
from ...runtime.model.transform import sharing_kv
from ..checkpoint import Checkpoint
from ..family import Reading
from .config_values import flag, size
from .llama_config import LlamaConfig, read_llama_config
from .llama_layers import read_layers
from .llama_names import LlamaNames
from .lora import Scale
from .mor_config import enabled, refuse, section, shares_kv
from .mor_relaxation import EncodedNames, PromptNames, prompt_tokens, read_method, with_prompts
from .mor_routing import RoutedNames, read_routing, router_heads
from .ties import MAX_LAYERS, TiedRun, plain

NAMES: dict[str | None, type[LlamaNames]] = {
    "recursion_encoding": EncodedNames,
    "adaption_prompt": PromptNames,
}
"""How the layers are named, by ``relaxation.method``, where not as Llama's."""


class MorFamily:
    """A conf.yaml with ``recursive.enable: true``."""

    name = "mor"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the training config says that the model is recursive."""
        recursive = (checkpoint.training_config or {}).get("recursive")
        return isinstance(recursive, dict) and bool(recursive.get("enable"))

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Return program and tensors; CheckpointError names what is not understood."""
        where = str(checkpoint.folder / "conf.yaml")
        training = checkpoint.training_config or {}
        if (kind := checkpoint.config.get("model_type")) != "llama":
            raise CheckpointError(f"{checkpoint.folder}: a recursive model_type {kind!r}; llama is supported")
        refuse(training, where)
        config = read_llama_config(checkpoint, ("kv_sharing",))
        method, scale = read_method(checkpoint, training, where)
        shares = shares_kv(checkpoint, training, where)
        if enabled(training, "mor", where):
            return self._routed(checkpoint, config, training, scale, shares, where)
        names = NAMES.get(method, LlamaNames)(checkpoint)
        plan = _plan(training["recursive"], names, config.layers, where)
        if isinstance(names, EncodedNames):
            names.encoded = frozenset(
                last for run in plan if len(run.applied[0]) > 1 for last in run.applied[-1]
            )
        read = names.prompts if isinstance(names, PromptNames) else ()
        reading = read_layers(names, config, plan, self.name, scale=scale, read=read)
        if isinstance(names, PromptNames):
            reading = with_prompts(reading, names, plan, prompt_tokens(training, where))
        if not shares:
            return reading
        if reading.program.depths < 2:
            raise CheckpointError(
                f"{where}: kv_sharing is enabled, and recursive.sharing repeats layer by layer: there is no loop "
                "whose depths could share; wanted cycle or middle_cycle"
            )
        return replace(reading, program=sharing_kv(reading.program, True))

    def _routed(
        self,
        checkpoint: Checkpoint,
        config: LlamaConfig,
        training: Mapping[str, Any],
        scale: Scale | None,
        shares: bool,
        where: str,
    ) -> Reading:
        recursive, mor = training["recursive"], training["mor"]
        sharing = recursive.get("sharing")
        if sharing not in ("cycle", "middle_cycle"):
            raise CheckpointError(
                f"{where}: recursive.sharing is {sharing!r} with mor enabled; wanted cycle or middle_cycle"
            )
        repeats = size(recursive, "num_recursion", f"{where}: recursive")
        if repeats > MAX_LAYERS:
            raise CheckpointError(
                f"{where}: recursive.num_recursion is {repeats}; wanted {MAX_LAYERS} at most"
            )
        routing = read_routing(mor, repeats, f"{where}: mor")
        names = RoutedNames(checkpoint, routing.kind, 1 if sharing == "middle_cycle" else 0, repeats)
        plan = _plan(recursive, names, config.layers, where)
        if routing.kind == "expert":
            # As first released, the authors' code makes attention anew for each recursion; commit 82c97f2 tied it.
            plan = [replace(run, own_attention=len(run.applied[0]) > 1) for run in plan]
        balancing = section(mor, routing.kind, where, "mor.").get("balancing")
        heads = router_heads(names, routing, config.hidden_size, balancing == "loss_free")
        reading = read_layers(names, config, plan, self.name, scale=scale, read=heads.used)
        if shares and reading.program.own_matrices:
            raise CheckpointError(
                f"{where}: kv_sharing is enabled, and attention has matrices for each recursion; wanted attention that "
                "all of them share, as in the authors' code since commit 82c97f2"
            )
        program = structs.replace(reading.program, routing=routing)
        if shares:
            program = sharing_kv(program, True)
        return replace(reading, program=program, heads=heads.tensors)


def _plan(recursive: Mapping[str, Any], names: LlamaNames, declared: int, where: str) -> list[TiedRun]:
    """Return the runs that conf.yaml declares as shared; ``read_layers`` checks that they are."""
    label = f"{where}: recursive"
    repeats = size(recursive, "num_recursion", label)
    sharing = recursive.get("sharing")
    if sharing not in ("cycle", "sequence", "middle_cycle", "middle_sequence"):
        raise CheckpointError(
            f"{label}.sharing is {sharing!r}; wanted cycle, sequence, middle_cycle or middle_sequence"
        )
    if repeats < 2:
        raise CheckpointError(f"{label}.num_recursion is {repeats}: nothing is repeated; wanted 2 or more")
    edge = 1 if sharing.startswith("middle_") else 0
    shared, rest = divmod(names.layers - 2 * edge, repeats)
    # Where L is not divisible the authors drop layers, but config.json may keep the number from before.
    kept = (declared - 2 * edge) // repeats * repeats + 2 * edge
    if rest or shared < 1 or names.layers not in (declared, kept):
        raise CheckpointError(
            f"{label}: {sharing} × {repeats} of {declared} layers keeps {kept}, but the weights have "
            f"{names.layers} layers; conf.yaml is not this checkpoint's"
        )
    per_repeat = not flag(recursive, "ln_share", label, True)
    if sharing.endswith("cycle"):
        applied = tuple(tuple(edge + j + d * shared for d in range(repeats)) for j in range(shared))
        middle = [TiedRun(applied, per_repeat)]
    else:
        starts = range(edge, edge + shared * repeats, repeats)
        middle = [TiedRun((tuple(range(at, at + repeats)),), per_repeat) for at in starts]
    return [plain((0,)), *middle, plain((names.layers - 1,))] if edge else middle
