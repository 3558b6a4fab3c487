"""The functions of a package, one builder each.

| function | inputs | outputs |
|---|---|---|
| ``embed`` | ids [1, 1], position | hidden [1, 1, D] |
| ``decode_d{r}`` | hidden, position | next [1, 1, D]: one pass of the block at depth r |
| ``kvfill_d{e}`` | hidden, position | next = hidden: K and V of the depths behind e, of a token that left there |
| ``head`` | hidden, position | logits [1, V] |
| ``decode_all`` | ids [1, 1], position | next, logits: embed, every depth and head in one |
| ``prefill`` | ids [1, T], position | next [1, T, D]: embed and every depth, and K and V of the layers behind |

``position`` [1] int32 is that of the first token: how many tokens the states hold. Inputs that a function has no use
for are left out of it. All functions have the same states.

A prompt's logits are ``head`` of its last token's next: an eighth of the weights that a chunk of mor-360m-r3 would read
are the head's, and only the last chunk has a use for it.
"""

from __future__ import annotations

from collections.abc import Callable

from coremltools import target
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types

from .constants import Constants, Store, Var
from .layers import Layers, Tokens
from .plan import Plan

Outputs = dict[str, Var]


class Body:
    """What a function's builder works with: its inputs, and the stages over them."""

    def __init__(self, plan: Plan, store: Store, inputs: dict[str, Var], count: int) -> None:
        self.plan, self.inputs, self.count = plan, inputs, count
        self.constants = Constants(store)
        self._layers = Layers(plan, self.constants, {name: inputs[name] for name in plan.states})
        self._tokens: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """The call's tokens; made when the first layer wants them."""
        if self._tokens is None:
            self._tokens = self._layers.tokens(self.inputs["position"], self.count)
        return self._tokens

    def embed(self) -> Var:
        """The ids' rows through the layers before the loop, [1, T, D]."""
        x = mb.gather(x=self.constants.matrix("embed"), indices=self.inputs["ids"], axis=0)
        width = self.plan.spec.hidden_size
        if x.shape[-1] > width:  # its last group was padded
            x = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[1, self.count, width])
        return self.run("prologue", x)

    def run(self, stage: str, x: Var, depth: int = 0) -> Var:
        """x [1, T, D] through the layers of ``stage``."""
        for layer in self.plan.applications(stage, depth):
            x = self._layers.apply(x, layer, self.tokens)
        return x

    def block(self, x: Var, depth: int) -> Var:
        """x [1, T, D] through one depth."""
        x = self.run("block", x, depth)
        return self._layers.norm(x, "norm") if self.plan.spec.loop_norm else x

    def loop(self, x: Var) -> Var:
        """x [1, T, D] through every depth."""
        for depth in range(self.plan.spec.depths):
            x = self.block(x, depth)
        return x

    def fill(self, x: Var, left: int) -> None:
        """K and V of every depth behind ``left``, of tokens that left with x [1, T, D]."""
        for depth in range(left + 1, self.plan.spec.depths):
            for layer in self.plan.applications("block", depth):
                self._layers.fill(x, layer, self.tokens)

    def behind(self, x: Var) -> None:
        """K and V of x [1, T, D] in the layers after the loop."""
        layers = self.plan.applications("epilogue")
        for layer in layers[:-1]:
            x = self._layers.apply(x, layer, self.tokens)
        for layer in layers[-1:]:
            self._layers.fill(x, layer, self.tokens)

    def logits(self, x: Var) -> Var:
        """x [1, 1, D] through the layers after the loop, norm and head → [1, V]."""
        spec = self.plan.spec
        x = self.run("epilogue", x)
        if not spec.loop_norm:
            x = self._layers.norm(x, "norm")
        x = mb.reshape(x=x, shape=[1, spec.hidden_size])
        return self.constants.linear(x, "embed" if spec.tied_embedding else "head", spec.hidden_size)


def _embed(body: Body, depth: int) -> Outputs:
    return {"hidden": body.embed()}


def _decode(body: Body, depth: int) -> Outputs:
    return {"next": body.block(body.inputs["hidden"], depth)}


def _kvfill(body: Body, depth: int) -> Outputs:
    body.fill(body.inputs["hidden"], depth)
    return {"next": body.inputs["hidden"]}


def _head(body: Body, depth: int) -> Outputs:
    return {"logits": body.logits(body.inputs["hidden"])}


def _whole(body: Body, depth: int) -> Outputs:
    x = body.loop(body.embed())
    return {"next": x, "logits": body.logits(x)}


def _prefill(body: Body, depth: int) -> Outputs:
    x = body.loop(body.embed())
    body.behind(x)
    return {"next": x}


_BUILDERS: dict[str, Callable[[Body, int], Outputs]] = {
    "embed": _embed,
    "decode": _decode,
    "kvfill": _kvfill,
    "head": _head,
    "decode_all": _whole,
    "prefill": _prefill,
}


def build(plan: Plan, store: Store, name: str) -> Function:
    """The function ``name`` of the package."""
    stem, _, depth = name.rpartition("_d") if name.rpartition("_d")[2].isdigit() else (name, "", "0")
    count = plan.chunk if stem == "prefill" else 1
    inputs = {
        name: mb.placeholder(shape, dtype=dtype)
        for name, (shape, dtype) in _inputs(plan, stem, count).items()
    }
    states = {
        name: mb.state_tensor_placeholder(shape, dtype=types.fp16) for name, shape in plan.states.items()
    }
    with Function(inputs | states, opset_version=target.iOS18) as function:
        outputs = _BUILDERS[stem](Body(plan, store, function.inputs, count), int(depth))
        function.set_outputs([mb.identity(x=value, name=name) for name, value in outputs.items()])
    return function


def _inputs(plan: Plan, stem: str, count: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of the inputs that a function has."""
    first: dict[str, tuple[tuple[int, ...], type]] = {"ids": ((1, count), types.int32)}
    if stem in ("decode", "kvfill", "head"):
        first = {"hidden": ((1, 1, plan.spec.hidden_size), types.fp16)}
    stage = {"embed": "prologue", "head": "epilogue"}.get(stem, "block")
    if plan.applications(stage):
        first["position"] = ((1,), types.int32)
    return first
