"""The functions of a package, one builder each.

| function | inputs | outputs |
|---|---|---|
| ``embed`` | ids [1, 1], position | hidden [1, 1, D]: the loop's carries side by side |
| ``decode_d{r}`` | hidden, position | next [1, 1, D]: one pass of the block at depth r |
| ``kvfill_d{e}`` | hidden, position | next = hidden: K/V of the depths behind e, of a token that left there |
| ``head`` | hidden, position | logits [1, V] |
| ``decode_all`` | ids [1, 1], position | next, logits: embed, every depth and head in one |
| ``prefill`` | ids [1, T], position | next [1, T, D]: embed and every depth, and K/V of the layers behind |

``position`` [1] int32 is that of the first token: how many tokens the states hold. Inputs that a function has no use
for are left out of it; where tokens have types, ``types`` [1, T] int32 go with ids. All functions have the same states.

A model whose attention has no caches reads a text at once: T is the context in all functions, there are no states, no
``prefill`` and no ``position``, but ``tokens`` [1] int32, how many of the T are the text; logits are [1, T, V].

A prompt's logits are ``head`` of its last token's next: an eighth of the weights that a chunk of mor-360m-r3 would read
are the head's, and only the last chunk has a use for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from coremltools import target
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types

from ....runtime.model.ops import Attend, Embed, Rotate
from ....runtime.model.program import Stage
from ...lower import mil
from ...lower.mil_matrices import split
from ...lower.mil_scope import Scope
from .constants import Store, Var
from .plan import PackagePlan

Outputs = dict[str, Var]
Carries = list[Var]
"""The values between stages, [1, T, width] each."""


class Body:
    """What a function's builder works with: its inputs, and the stages over them."""

    def __init__(self, plan: PackagePlan, store: Store, inputs: dict[str, Var], count: int) -> None:
        self.plan, self._inputs = plan, inputs
        self._scope = Scope(plan, store, inputs, count)

    @property
    def hidden(self) -> Carries:
        """Return the carries that the host gives side by side, [1, T, D]."""
        return split(self._inputs["hidden"], [carry.width for carry in self.plan.program.loop.carries])

    def embed(self) -> Carries:
        """Return the carries after the embedding and the layers before the loop."""
        prologue = self.plan.program.prologue
        hosts = {
            "ids": lambda: self._inputs["ids"],
            "types": lambda: self._inputs["types"],
            "positions": lambda: self._scope.tokens.positions,
        }
        return mil.run(self._scope, "prologue", prologue, 0, [hosts[name]() for name in prologue.inputs])

    def block(self, carries: Carries, depth: int) -> Carries:
        """Return the carries after one depth."""
        return mil.run(self._scope, "block", self.plan.blocks[depth], depth, carries)

    def loop(self, carries: Carries) -> Carries:
        """Return the carries after every depth."""
        for depth in range(self.plan.program.depths):
            carries = self.block(carries, depth)
        return carries

    def fill(self, carries: Carries, left: int) -> None:
        """Write K/V of every depth after ``left``, of tokens that left with ``carries``."""
        for depth in range(left + 1, self.plan.program.depths):
            mil.fill(self._scope, "block", self.plan.fillers[depth], depth, carries)

    def behind(self, carries: Carries) -> None:
        """Write K/V of the layers after the loop."""
        mil.fill(self._scope, "epilogue", self.plan.behind, 0, carries)

    def logits(self, carries: Carries) -> Var:
        """Return the logits after the layers behind the loop and the head: [1, V] of one token, or [1, T, V] of
        each."""
        program = self.plan.program
        given = mil.run(self._scope, "epilogue", program.epilogue, 0, carries)
        (logits,) = mil.run(self._scope, "head", program.head, 0, given)
        return logits if self.plan.at_once else mb.reshape(x=logits, shape=[1, program.vocab_size])

    def state(self, carries: Carries) -> Var:
        """Return the carries side by side, as the host gets them."""
        return mb.concat(values=carries, axis=-1) if len(carries) > 1 else carries[0]


def _embed(body: Body, depth: int) -> Outputs:
    return {"hidden": body.state(body.embed())}


def _decode(body: Body, depth: int) -> Outputs:
    return {"next": body.state(body.block(body.hidden, depth))}


def _kvfill(body: Body, depth: int) -> Outputs:
    carries = body.hidden
    body.fill(carries, depth)
    return {"next": body.state(carries)}


def _head(body: Body, depth: int) -> Outputs:
    return {"logits": body.logits(body.hidden)}


def _whole(body: Body, depth: int) -> Outputs:
    carries = body.loop(body.embed())
    return {"next": body.state(carries), "logits": body.logits(carries)}


def _prefill(body: Body, depth: int) -> Outputs:
    carries = body.loop(body.embed())
    body.behind(carries)
    return {"next": body.state(carries)}


_BUILDERS: dict[str, Callable[[Body, int], Outputs]] = {
    "embed": _embed,
    "decode": _decode,
    "kvfill": _kvfill,
    "head": _head,
    "decode_all": _whole,
    "prefill": _prefill,
}


def build(plan: PackagePlan, store: Store, name: str) -> Function:
    """Return the function ``name`` of the package."""
    stem, _, depth = name.rpartition("_d") if name.rpartition("_d")[2].isdigit() else (name, "", "0")
    count = plan.most if stem == "prefill" or plan.at_once else 1
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


def _inputs(plan: PackagePlan, stem: str, count: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and type of the inputs of a function."""
    first: dict[str, tuple[tuple[int, ...], type]] = {"ids": ((1, count), types.int32)}
    if stem in ("decode", "kvfill", "head"):
        first = {"hidden": ((1, count, plan.program.width), types.fp16)}
    elif plan.program.token_types:
        first["types"] = first["ids"]
    if any((_reads if plan.at_once else _placed)(stage) for stage in _stages(plan, stem)):
        first["tokens" if plan.at_once else "position"] = ((1,), types.int32)
    return first


def _stages(plan: PackagePlan, stem: str) -> Iterator[Stage]:
    """Yield the stages that functions of ``stem`` run, or more: those that one leaves out need no other inputs."""
    program = plan.program
    if stem in ("embed", "prefill", "decode_all"):
        yield program.prologue
    if stem in ("decode", "kvfill", "prefill", "decode_all"):
        yield from plan.blocks
    if stem in ("head", "prefill", "decode_all"):
        yield program.epilogue


def _reads(stage: Stage) -> bool:
    """Return whether the tokens of ``stage`` see each other."""
    return any(isinstance(op, Attend) for op in stage.ops)


def _placed(stage: Stage) -> bool:
    """Return whether ``stage`` depends on the positions of its tokens."""
    return any(
        isinstance(op, Rotate | Attend) or (isinstance(op, Embed) and op.ids == "positions")
        for op in stage.ops
    )
