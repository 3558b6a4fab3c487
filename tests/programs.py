"""Small programs of many kinds of models: every op, every kind of weight, one carry and two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from msgspec import structs

from edgeloop.runtime.model.blocks import (
    Attention,
    Layer,
    Mlp,
    NormKind,
    Writer,
    llama,
    output_norm,
    parallel,
    post_norm,
)
from edgeloop.runtime.model.ops import (
    Act,
    Add,
    AttendLearned,
    AttendTwice,
    Concat,
    Embed,
    Experts,
    Mul,
    Rotate,
    Scale,
    Shift,
    Slice,
    Softcap,
)
from edgeloop.runtime.model.program import Carry, Loop, Program, Routing
from edgeloop.runtime.model.rotation import Interpolated, Llama3, Rotation, Yarn
from edgeloop.runtime.model.weights import Delta, Matrix, Vector, Weight

VOCAB, WIDTH, DEPTHS = 20, 8, 3
RMS, LAYER = NormKind(1e-5), NormKind(1e-6, "layer", bias=True)
HEADS = Attention(heads=2, kv_heads=1, head_dim=4, rotation=Rotation(4, 10000.0))
PLAIN = Layer(WIDTH, HEADS, Mlp(12), RMS)
Body = Callable[[Writer], str]


def program(
    weights: dict[str, Weight],
    prologue: Body,
    blocks: Sequence[Callable[[Writer], tuple[str, ...]]],
    *,
    epilogue: Body = lambda w: "state",
    schedule: tuple[int, ...] = (0,) * DEPTHS,
    carries: tuple[str, ...] = ("state",),
    tied: bool = True,
    cap: float | None = None,
    bias: bool = False,
    routing: Routing | None = None,
    gate: bool = False,
    given: tuple[str, ...] = ("ids",),
) -> Program:
    """A model with an embedding and a head; what is given writes into the stages."""
    w = Writer(weights, *given)
    table = Matrix({"embed": VOCAB}, WIDTH, bias)
    w.add(Embed("ids", "embedded", w.weight("embed", table), 2.5))
    before = w.stage(prologue(w), *("embedded" for _ in carries[1:]))
    loop = []
    for block in blocks:
        w = Writer(weights, *carries)
        loop.append(w.stage(*block(w)))
    w = Writer(weights, *carries)
    after = w.stage(epilogue(w))
    w = Writer(weights, "state")
    x = w.norm("state", "normed", "norm", WIDTH, RMS)
    if tied:
        w.linear(x, ("logits",), "embed", table)
    else:
        w.linear(x, ("logits",), "head", Matrix({"head": VOCAB}, WIDTH, bias=True))
    if cap is not None:
        w.add(Softcap("logits", "capped", cap))
    return Program(
        family="test",
        vocab_size=VOCAB,
        context_length=32,
        prologue=before,
        loop=Loop(tuple(Carry(name, WIDTH) for name in carries), tuple(loop), schedule),
        epilogue=after,
        head=w.stage("capped" if cap is not None else "logits"),
        weights=weights,
        routing=routing,
        exit_gate=gate,
        bos_token_id=1,
        eos_token_ids=(0, 2),
    )


def stack(w: Writer, x: str, segment: str, layers: Sequence[Layer], at: int | None = None) -> str:
    """Layers of Llama, one after the other."""
    for number, layer in enumerate(layers):
        x = llama(w, x, f"{segment}.{number}", layer, at)
    return x


def relaxed() -> Program:
    """Recursive Llama whose depths have deltas and norms of their own, a layer before and one after."""
    deltas = {"q_proj": Delta(2), "down_proj": Delta(3, rescaled=True), "up_proj": Delta(1)}
    looped = replace(PLAIN, depths=DEPTHS, norm_rows=True, deltas=deltas)
    return program(
        {},
        lambda w: stack(w, "embedded", "a", [PLAIN]),
        [lambda w: (stack(w, "state", "b", [looped, looped]),)],
        epilogue=lambda w: stack(w, "state", "c", [replace(PLAIN, attention=replace(HEADS, rotation=None))]),
        gate=True,
    )


def windowed(windows: Sequence[int | None], context: int, slot: Literal["own", "first"] = "own") -> Program:
    """A layer of the block for each window, in a ``context`` that may be longer than what they keep."""
    layers = [replace(PLAIN, attention=replace(HEADS, window=w, slot=slot)) for w in windows]
    made = program({}, lambda w: "embedded", [lambda w: (stack(w, "state", "b", layers),)])
    return structs.replace(made, context_length=context)


def shared() -> Program:
    """Depths that read the K and V of the first."""
    looped = replace(PLAIN, attention=replace(HEADS, slot="first", window=5), depths=DEPTHS, norm_rows=True)
    return program(
        {}, lambda w: "embedded", [lambda w: (stack(w, "state", "b", [looped, looped]),)], tied=False
    )


def routed() -> Program:
    """Depths with attention of their own, and a router between them."""
    looped = replace(PLAIN, depths=DEPTHS, own_attention=True, deltas={"q_proj": Delta(2)})
    routing = Routing(kind="expert", squash="sigmoid", alpha=0.5, temperature=0.8, capacity=(1.0, 0.5, 0.25))
    return program({}, lambda w: "embedded", [lambda w: (stack(w, "state", "b", [looped]),)], routing=routing)


def twice() -> Program:
    """Every layer twice in a row, written out in a block that is run once; norms of each application."""
    layer = replace(PLAIN, depths=2, norm_rows=True)

    def block(w: Writer) -> tuple[str, ...]:
        x = "state"
        for number in range(2):
            for at in range(2):
                x = llama(w, x, f"b.{number}", layer, at, sandwich=True)
        return (w.norm(x, "next", "norm", WIDTH, RMS),)

    return program({}, lambda w: "embedded", [block], schedule=(0,))


def gpt() -> Program:
    """GPT-NeoX: parallel residual, LayerNorm with bias, biases, a part of each head turned, exact GELU."""
    attention = replace(HEADS, rotation=Rotation(2, 500.0, Interpolated(2.0)), bias=True, out_bias=True)
    layer = Layer(WIDTH, attention, Mlp(12, "gelu", gated=False, bias=True), LAYER)
    return program({}, lambda w: "embedded", [lambda w: (parallel(w, "state", "b.0", layer),)], tied=False)


def gemma() -> Program:
    """Norms of outputs, of q and k; caps, a scale of scores, a window, rotations that are scaled."""
    llama3 = Rotation(4, 10000.0, Llama3(8.0, 1.0, 4.0, 16))
    yarn = Rotation(4, 10000.0, Yarn(4.0, 16, 1.1))
    near = replace(HEADS, rotation=llama3, pairs=True, scale=0.3, window=4, cap=50.0, qk_norm="heads")
    far = replace(HEADS, rotation=yarn, scale=0.3, cap=50.0, qk_norm="width")
    gelu = Mlp(12, "gelu_tanh")

    def block(w: Writer) -> tuple[str, ...]:
        x = llama(w, "state", "b.0", Layer(WIDTH, near, gelu, RMS), sandwich=True)
        x = output_norm(w, x, "b.1", Layer(WIDTH, far, gelu, RMS))
        return (post_norm(w, x, "b.2", Layer(WIDTH, HEADS, gelu, LAYER)),)

    return program({}, lambda w: "embedded", [block], cap=30.0)


def adapted() -> Program:
    """Huginn: the state and the prologue's output, side by side, through an adapter, into the layers."""

    def block(w: Writer) -> tuple[str, ...]:
        w.add(Concat(("state", "input"), "both"))
        w.linear("both", ("adapted",), "adapter", Matrix({"adapter": WIDTH}, 2 * WIDTH, bias=True))
        return (stack(w, "adapted", "b", [PLAIN, PLAIN]), "input")

    return program({}, lambda w: "embedded", [block], carries=("state", "input"))


def hierarchical() -> Program:
    """HRM: two states, two blocks that alternate, each adding the other state; a gate on the output."""

    def block(name: str, first: str, second: str) -> Callable[[Writer], tuple[str, ...]]:
        def write(w: Writer) -> tuple[str, ...]:
            w.add(Add("state", "low", "sum"))
            x = stack(w, "sum", name, [PLAIN])
            w.add(Slice(x, "half", 2, 4))
            w.add(Act("half", "gate", "sigmoid"))
            w.add(Mul(x, "gate", "gated"))
            w.weight(f"{name}.injection", Vector(WIDTH, 4))
            w.add(Scale("gated", "scaled", 0.5, 0.1, f"{name}.injection"))
            return tuple(value or "scaled" for value in (first, second))

        return write

    return program(
        {},
        lambda w: "embedded",
        [block("low", "state", ""), block("high", "", "low")],
        schedule=(0, 0, 0, 1),
        carries=("state", "low"),
    )


def experts() -> Program:
    """A mixture of experts in place of the MLP, without positions; K and V of the tokens before in a fixed number."""

    def block(w: Writer) -> tuple[str, ...]:
        x = llama(w, "state", "b.0", replace(PLAIN, attention=replace(HEADS, rotation=None)))
        w.linear(x, ("scores",), "router", Matrix({"scores": 4}, WIDTH))
        w.weight("up", Matrix({"up": 12}, WIDTH, copies=4))
        w.weight("down", Matrix({"down": WIDTH}, 6, copies=4))
        w.add(Experts(x, "scores", "mixed", "up", "down", 2, "silu", gated=True))
        w.linear("mixed", ("q",), "q", Matrix({"q": WIDTH}, WIDTH))
        for name in ("keys", "values"):
            w.weight(name, Vector(4, 3))
        w.add(AttendLearned("q", "learned", "keys", "values", 2, 1, 4, 0.5))
        w.add(Add(x, "learned", "next"))
        return ("next",)

    return program({}, lambda w: "embedded", [block])


def parallel_loop() -> Program:
    """PLT: the state of the token before joins, and attention reads depth 0's keys beside a window of its own."""

    def block(w: Writer) -> tuple[str, ...]:
        w.add(Shift("state", "before", 0))
        w.add(Add("state", "before", "entered"))
        w.enter_layer("entered")
        w.linear("entered", ("q", "k", "v"), "qkv", Matrix({"q": 8, "k": 4, "v": 4}, WIDTH))
        w.add(Rotate("q", "q_turned", 2, Rotation(4, 10000.0)))
        w.add(Rotate("k", "k_turned", 1, Rotation(4, 10000.0)))
        w.linear("q", ("z",), "gate", Matrix({"gate": 2}, WIDTH))
        w.add(Act("z", "g", "sigmoid"))
        w.add(AttendTwice("q_turned", "k_turned", "v", "g", "mixed", 2, 1, 4, 0.5, 0, 4))
        w.linear("mixed", ("out",), "o", Matrix({"o": WIDTH}, WIDTH))
        w.add(Add("entered", "out", "next"))
        return ("next",)

    return program({}, lambda w: "embedded", [block], schedule=(0, 0))


def positioned() -> Program:
    """GPT-2: positions have a table, and are not turned by."""
    layer = Layer(WIDTH, replace(HEADS, rotation=None, bias=True), Mlp(12, "gelu_tanh", gated=False), LAYER)

    def prologue(w: Writer) -> str:
        w.add(Embed("positions", "placed", w.weight("places", Matrix({"places": 32}, WIDTH))))
        w.add(Add("embedded", "placed", "both"))
        return "both"

    return program({}, prologue, [lambda w: (llama(w, "state", "b.0", layer),)], given=("ids", "positions"))


def encoder() -> Program:
    """ALBERT: attention both ways without a cache, groups in turn; the head's bias lies beside the embedding."""
    attention = replace(HEADS, rotation=None, mask="both", cached=False, bias=True)
    layer = Layer(WIDTH, attention, Mlp(12, "gelu_tanh", gated=False, bias=True), LAYER)

    def group(name: str) -> Callable[[Writer], tuple[str, ...]]:
        return lambda w: (post_norm(w, "state", name, layer),)

    def prologue(w: Writer) -> str:
        w.add(Embed("types", "typed", w.weight("types", Matrix({"types": 2}, WIDTH))))
        w.add(Add("embedded", "typed", "both"))
        return "both"

    blocks = [group("b"), group("c")]
    return program({}, prologue, blocks, schedule=(0, 0, 1), given=("ids", "types"), bias=True)


PROGRAMS: dict[str, Callable[[], Program]] = {
    make.__name__: make
    for make in (
        relaxed, shared, routed, twice, gpt, gemma, adapted, hierarchical, experts, parallel_loop, positioned, encoder,
    )
}  # fmt: skip
