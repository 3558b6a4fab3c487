"""Decoders of one stack of layers, as a family describes them: what repeats becomes the loop, and tensors get loaders.

The stack is an ordinary model's in which layers repeat (found in the weights), or is applied several times (said by the
config): the plan is the family's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from ...runtime.model.blocks import Layer, NormKind
from ...runtime.model.decoder import Block, Segment, decoder
from ...runtime.model.program import Program
from ...runtime.model.weights import Delta, Vector, canonical
from ..checkpoint import Checkpoint
from ..family import Reading
from .llama_config import LlamaConfig
from .reader import Reader, Source
from .ties import LayerNames, TiedRun

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Stack:
    """What a family says of its model.

    ``layer`` describes a stored layer by its number. ``sources`` are the checkpoint's tensors of a layer by the
    canonical name within it, those whose names end in norm or norm_bias apart from the layers' repetitions; ``outer``
    are the others, by their canonical names. ``tied``: tie_word_embeddings. ``what`` is read in a layer, in words.
    """

    family: str
    block: Block
    layer: Callable[[int], Layer]
    norm: NormKind
    sources: Mapping[str, Source]
    outer: Mapping[str, Source]
    width: int
    vocab_size: int
    context_length: int
    tied: bool
    what: str
    norm_each_depth: bool = False
    embed_scale: float = 1.0
    logit_cap: float | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


class StackNames(LayerNames):
    """The names of a checkpoint whose layers are numbered in one stack."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        whose: str,
        sources: Mapping[str, Source],
        kinds: Sequence[Hashable] = (),
        embedding: str = "model.embed_tokens.weight",
        stack: str = "model.layers",
    ) -> None:
        """``sources`` and ``kinds``: as in ``Stack`` and in ``LayerNames``."""
        self.whose, self.embedding, self.stack, self.kinds = whose, embedding, stack, kinds
        super().__init__(checkpoint)
        self._shared = list(dict.fromkeys(s.name for part, s in sources.items() if not _is_norm(part)))

    def shared(self, layer: int) -> list[str]:
        """Return the tensors of a layer that every layer that repeats it has too: all but its norms."""
        return [f"{self.inside}{layer}.{name}" for name in self._shared]


def llama_sources(biased: Sequence[str], norms: Mapping[str, str], plus: float = 0.0) -> dict[str, Source]:
    """Return the tensors of a layer with Llama's names: seven matrices, biases of those ``biased``, and ``norms``.

    ``norms``: their names in the checkpoint by ours; ``plus`` is added to them.
    """
    found = {}
    for part in (*ATTENTION, *MLP):
        module = "self_attn" if part in ATTENTION else "mlp"
        for kind in ("weight", "bias") if part in biased else ("weight",):
            found[f"{part}.{kind}"] = Source(f"{module}.{part}.{kind}")
    return found | {f"{ours}.weight": Source(f"{theirs}.weight", plus=plus) for ours, theirs in norms.items()}


def llama_stack(
    family: str,
    names: StackNames,
    config: LlamaConfig,
    block: Block,
    layer: Callable[[int], Layer],
    sources: Mapping[str, Source],
    what: str,
    plus: float = 0.0,
) -> Stack:
    """Return the stack of a model with Llama's names and keys; ``plus`` is added to the last norm."""
    return Stack(
        family,
        block,
        layer,
        NormKind(config.norm_eps),
        sources,
        {
            "norm.weight": Source(f"{names.prefix}model.norm.weight", plus=plus),
            "head.weight": Source(f"{names.prefix}lm_head.weight"),
        },
        config.hidden_size,
        config.vocab_size,
        config.context_length,
        config.tie_word_embeddings,
        what,
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
    )


def read_stack(
    names: StackNames, plan: Sequence[TiedRun], stack: Stack, known: Collection[str] = ()
) -> Reading:
    """Return the Reading of a plan; CheckpointError names a tensor that is missing, of a wrong shape, not shared
    although the plan says so, or part of a layer and not read. ``known`` are tensors that change nothing."""
    reader = Reader(names)
    tied = reader.head_is_embedding(stack.outer["head.weight"].name, stack.tied)
    segments = [_segment(reader, run, stack) for run in plan]
    without_rows = _program(stack, segments, tied)
    segments = [
        tuple(replace(layer, norm_rows=_norms_differ(reader, number, run, stack, without_rows)) for layer in each)
        for number, (run, each) in enumerate(zip(plan, segments, strict=True))
    ]  # fmt: skip
    program = _program(stack, segments, tied)
    reader.layers(program.weights, plan, stack.sources)
    outer = {"embed.weight": Source(names.embed)} | dict(stack.outer)
    for tensor in canonical(program.weights):
        if not tensor.name.startswith("segments."):
            reader.plain(tensor.name, outer[tensor.name], tensor.shape)
    reader.refuse_leftovers(stack.what, known)
    return Reading(program, reader.tensors, frozenset(reader.used | set(known)))


def _segment(reader: Reader, run: TiedRun, stack: Stack) -> Segment:
    """Return the descriptions of the layers of ``run``, with their deltas, without rows of norms."""
    return tuple(
        replace(stack.layer(applied[0]), depths=len(applied), deltas=_deltas(reader, applied, stack))
        for applied in run.applied
    )


def _deltas(reader: Reader, applied: Sequence[int], stack: Stack) -> dict[str, Delta]:
    """Return the deltas of a layer that is the stored layers ``applied``, by part."""
    found = {}
    for part, source in stack.sources.items():
        group = [f"{reader.names.inside}{number}.{source.name}" for number in applied]
        if part.endswith(".weight") and (delta := reader.delta_of([group])):
            found[part.removesuffix(".weight")] = delta
    return found


def _norms_differ(reader: Reader, number: int, run: TiedRun, stack: Stack, program: Program) -> bool:
    """Return whether any norm of the segment ``number`` of ``program`` differs between depths."""

    def groups() -> Iterator[tuple[list[str], tuple[int, ...]]]:
        for name, weight in program.weights.items():
            if name.startswith(f"segments.{number}.") and isinstance(weight, Vector):
                layer, part = name.split(".", 4)[3:]
                stored = stack.sources[f"{part}.weight"].name
                yield (
                    [f"{reader.names.inside}{each}.{stored}" for each in run.applied[int(layer)]],
                    (weight.size,),
                )

    return reader.differ(groups())


def _program(stack: Stack, segments: Sequence[Segment], tied: bool) -> Program:
    program = decoder(
        stack.family,
        stack.block,
        segments,
        stack.norm,
        width=stack.width,
        vocab_size=stack.vocab_size,
        context_length=stack.context_length,
        tied_embedding=tied,
        norm_each_depth=stack.norm_each_depth,
        embed_scale=stack.embed_scale,
        logit_cap=stack.logit_cap,
    )
    return structs.replace(program, bos_token_id=stack.bos_token_id, eos_token_ids=stack.eos_token_ids)


def _is_norm(part: str) -> bool:
    return part.split(".")[0].endswith(("norm", "norm_bias"))
