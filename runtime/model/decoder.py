"""Programs of decoders: an embedding, segments of layers of which one may be the loop, a norm, and a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .blocks import Layer, NormKind, Writer
from .ops import Embed, Softcap
from .program import Carry, Loop, Program
from .weights import Matrix, Weight

Block = Callable[[Writer, str, str, Layer, int | None], str]
"""Writes a layer, as ``blocks.llama``: (writer, value that enters, prefix of weights, layer, depth) → value after
it."""

Segment = tuple[Layer, ...]
"""A description of each stored layer; all of them are applied ``depths`` times in a row."""


@dataclass(frozen=True)
class Stages:
    """The numbers of the segments in each stage, and how often the block is applied."""

    prologue: tuple[int, ...]
    block: tuple[int, ...]
    epilogue: tuple[int, ...]
    depths: int


def stages_of(repeats: Sequence[int]) -> Stages:
    """Return how segments, each applied ``repeats[i]`` times, are split into the depth loop and the graphs around it.

    One segment with repeats > 1 is the loop. Where several repeat (MobileLLM-LS: every layer twice) or none does,
    all of them are one block of depth 1, whose graph unrolls them with shared weights.
    """
    looped = [i for i, times in enumerate(repeats) if times > 1]
    everything = tuple(range(len(repeats)))
    if len(looped) != 1:
        return Stages((), everything, (), 1)
    (loop,) = looped
    return Stages(everything[:loop], (loop,), everything[loop + 1 :], repeats[loop])


def decoder(
    family: str,
    block: Block,
    segments: Sequence[Segment],
    norm: NormKind,
    *,
    width: int,
    vocab_size: int,
    context_length: int,
    tied_embedding: bool,
    norm_each_depth: bool = False,
    embed_scale: float = 1.0,
    logit_cap: float | None = None,
) -> Program:
    """Return the program of a decoder whose layers ``block`` writes, named ``segments.{number}.layers.{number}``.

    ``norm`` is the final one; with ``norm_each_depth`` it is applied after every depth, and its output feeds the
    next one. ``embed_scale`` multiplies the embedding's rows, ``logit_cap`` is c of c · tanh(logits / c).
    """
    weights: dict[str, Weight] = {}
    stages = stages_of([layers[0].depths for layers in segments])

    def write(w: Writer, numbers: tuple[int, ...], x: str, at: int | None) -> str:
        """The layers of a stage. ``at`` None: each segment is applied once, at the lane's depth."""
        for s in numbers:
            depths = segments[s][0].depths
            for repeat in range(depths) if at is not None else (None,):
                own = repeat if repeat is not None or depths > 1 else 0
                for j, layer in enumerate(segments[s]):
                    x = block(w, x, f"segments.{s}.layers.{j}", layer, own)
        return x

    table = Matrix({"embed": vocab_size}, width)
    w = Writer(weights, "ids")
    w.add(Embed("ids", "embedded", w.weight("embed", table), embed_scale))
    prologue = w.stage(write(w, stages.prologue, "embedded", None))
    w = Writer(weights, "state")
    out = write(w, stages.block, "state", None if stages.depths > 1 else 0)
    if norm_each_depth:
        out = w.norm(out, "next", "norm", width, norm)
    looped = w.stage(out)
    w = Writer(weights, "state")
    epilogue = w.stage(write(w, stages.epilogue, "state", None))
    w, x = Writer(weights, "state"), "state"
    if not norm_each_depth:
        x = w.norm(x, "normed", "norm", width, norm)
    head = table if tied_embedding else Matrix({"head": vocab_size}, width)
    logits = "logits" if logit_cap is None else "uncapped"
    w.linear(x, (logits,), "embed" if tied_embedding else "head", head)
    if logit_cap is not None:
        w.add(Softcap("uncapped", "logits", logit_cap))
    return Program(
        family=family,
        vocab_size=vocab_size,
        context_length=context_length,
        prologue=prologue,
        loop=Loop((Carry("state", width),), (looped,), (0,) * stages.depths),
        epilogue=epilogue,
        head=w.stage("logits"),
        weights=weights,
    )
