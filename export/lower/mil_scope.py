"""What the ops of a function of a Core ML package share: its tokens, its states, and the values of a stage.

Float16 throughout. T new tokens, C rows of a state, G query heads of a KV head.
"""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from ...runtime.engines.coreml.layout import CacheState
from ...runtime.model.rotation import Rotation
from ...runtime.model.weights import Vector
from ..targets.coreml.constants import Constants, Store, Var
from ..targets.coreml.plan import PackagePlan

MASKED = np.float16(-3e4)
"""Added to the scores of tokens that are not seen: its exponential is 0 in float16 and in float32."""


class States:
    """The newest value of each state of a function.

    A state is read once, and every later attention gets the value that the one before it wrote: coremltools' pass
    remove_redundant_ops takes a second read for the first, and drops what was written in between.
    """

    def __init__(self, plan: PackagePlan, states: dict[str, Var]) -> None:
        self._shapes, self._states = plan.states, states
        self._values: dict[str, Var] = {}

    def row(self, state: str, row: int) -> Var:
        """Return one row of a state, [1, K, C, d]."""
        _, *rest = self._shapes[state]
        return mb.slice_by_index(x=self._value(state), begin=[row, 0, 0, 0], end=[row + 1, *rest])

    def write(self, state: str, row: int, new: Var, start: Var, stop: Var) -> None:
        """Write new [1, K, T, d] into the tokens ``start`` … ``stop`` − 1, [1] each, of one row of a state."""
        _, heads, _, width = self._shapes[state]
        zero, end = np.array([0], np.int32), np.array([width], np.int32)
        begin = mb.concat(values=[np.array([row, 0], np.int32), start, zero], axis=0)
        last = mb.concat(values=[np.array([row + 1, heads], np.int32), stop, end], axis=0)
        value = mb.slice_update(x=self._value(state), update=new, begin=begin, end=last)
        self._values[state] = mb.coreml_update_state(state=self._states[state], value=value)

    def _value(self, state: str) -> Var:
        if state not in self._values:
            self._values[state] = mb.read_state(input=self._states[state])
        return self._values[state]


class Tokens:
    """The T tokens of a function: their positions, masks, and cos and sin; each is made when it is first used."""

    def __init__(self, plan: PackagePlan, constants: Constants, inputs: dict[str, Var], count: int) -> None:
        """``inputs`` of the function: the ``position`` [1] int32 of the first of ``count`` tokens, or for a text that
        is read at once, how many ``tokens`` of them it has.
        """
        self.count, self._inputs = count, inputs
        self._plan, self._constants = plan, constants
        steps = constants.array(f"steps.{count}", np.arange(count, dtype=np.int32))
        if plan.at_once:
            self._positions = self.inside = steps
        else:
            self._positions = mb.add(x=self.start, y=steps)
            # The padding of the last chunk has positions behind the end of the tables.
            self.inside = mb.minimum(x=self._positions, y=np.int32(plan.program.context_length - 1))
        self._stop: Var | None = None
        self._cos_sin: dict[tuple[Rotation, int, bool], tuple[Var, Var]] = {}
        self._masks: dict[tuple[int, int | None, bool], Var] = {}

    @property
    def start(self) -> Var:
        """The row of the first token, [1]."""
        return self._inputs["position"]

    @property
    def positions(self) -> Var:
        """The tokens' positions [1, T], as rows of a table."""
        return mb.expand_dims(x=self.inside, axes=[0])

    @property
    def stop(self) -> Var:
        """The row behind the last token's, [1]."""
        if self._stop is None:
            self._stop = mb.add(x=self.start, y=np.array([self.count], np.int32))
        return self._stop

    def hidden_mask(self, groups: int, window: int | None, causal: bool = True) -> Var:
        """Return [1, 1, G·T, C], which is added to the scores: of a sliding ``window`` of tokens, or of all that
        came before.

        Of a text that is read at once the columns are its T tokens; ``causal``: tokens after a row's own are
        hidden.
        """
        key = groups, window, causal
        if key not in self._masks:
            capacity = self._plan.capacity
            rows = self._constants.array("rows", np.arange(capacity, dtype=np.int32)[None])
            column = mb.expand_dims(x=self._positions, axes=[1])
            hidden = [mb.less(x=column, y=rows)] if causal else []
            if self._plan.at_once:
                ends = mb.tile(x=mb.expand_dims(x=self._inputs["tokens"], axes=[1]), reps=[self.count, 1])
                hidden.append(mb.greater_equal(x=rows, y=ends))
            if window is not None:
                hidden.append(mb.greater_equal(x=mb.sub(x=column, y=rows), y=np.int32(window)))
            unseen, *others = hidden
            for other in others:
                unseen = mb.logical_or(x=unseen, y=other)
            mask = mb.mul(x=mb.cast(x=unseen, dtype="fp16"), y=MASKED)
            self._masks[key] = mb.expand_dims(x=mb.tile(x=mask, reps=[groups, 1]), axes=[0, 1])
        return self._masks[key]

    def cos_sin(self, by: Rotation, width: int, pairs: bool) -> tuple[Var, Var]:
        """Return cos and sin [1, T, 1, ``width``] for heads of that size, in the order of the head's dims.

        The first dim of each pair has its sin negated; dims that are not rotated have 1 and 0.
        """
        key = by, width, pairs
        if key not in self._cos_sin:
            number = self._plan.program.rotations.index(by)
            cos, sin = (
                mb.gather(
                    x=self._constants.array(f"rope{number or ''}.{f}", table), indices=self.inside, axis=0
                )
                for f, table in zip(("cos", "sin"), self._plan.cos_sin[by], strict=True)
            )
            minus = mb.mul(x=sin, y=np.float16(-1))
            self._cos_sin[key] = (
                self._by_dim(cos, cos, np.float16(1), width, pairs),
                self._by_dim(minus, sin, np.float16(0), width, pairs),
            )
        return self._cos_sin[key]

    def _by_dim(self, first: Var, second: Var, rest: np.float16, width: int, pairs: bool) -> Var:
        """Return [1, T, 1, width] from tables [T, dims/2] of the first and of the second dim of each pair."""
        dims = 2 * first.shape[-1]
        if pairs:
            sides = [mb.expand_dims(x=side, axes=[2]) for side in (first, second)]
            values = [mb.reshape(x=mb.concat(values=sides, axis=-1), shape=[self.count, dims])]
        else:
            values = [first, second]
        if width > dims:
            still = np.full((self.count, width - dims), rest, np.float16)
            values.append(self._constants.array(f"still.{rest:.0f}.{self.count}x{width - dims}", still))
        whole = mb.concat(values=values, axis=-1) if len(values) > 1 else values[0]
        return mb.reshape(x=whole, shape=[1, self.count, 1, width])


class Scope:
    """A function while its ops are written.

    ``stage``, ``depth``: those that run now, whose caches ``place`` finds. ``written``: those of its caches whose
    new K/V are in the states.
    """

    def __init__(self, plan: PackagePlan, store: Store, inputs: dict[str, Var], count: int) -> None:
        """``inputs`` of the function, its states among them; ``count`` tokens."""
        self.plan, self.inputs, self.count = plan, inputs, count
        self.constants = Constants(store)
        self.states = States(plan, {name: inputs[name] for name in plan.states})
        self.stage, self.depth, self.written = "prologue", 0, set[int]()
        self._tokens: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """The function's tokens, made when the first op uses them: functions that need no position have none."""
        if self._tokens is None:
            self._tokens = Tokens(self.plan, self.constants, self.inputs, self.count)
        return self._tokens

    def enter(self, stage: str, depth: int) -> None:
        """Set the stage and the depth that run from now on."""
        self.stage, self.depth, self.written = stage, depth, set()

    def at(self, depth: int | None) -> int:
        """Return the depth whose weights an op uses: its own ``depth``, or the one that runs now."""
        return self.depth if depth is None else depth

    def vector(self, name: str, depth: int | None = None) -> Var:
        """Return the vector ``name`` [size] at ``depth``."""
        vector = self.plan.program.weights[name]
        assert isinstance(vector, Vector)
        pick = None if vector.rows is None else 0 if vector.rows == 1 else self.at(depth)
        return self.constants.half(f"{name}.weight", pick)

    def place(self, cache: int) -> CacheState:
        """Return the states and the row of ``cache``."""
        return self.plan.layout.place(self.stage, cache, self.depth)


class Values:
    """The values of a stage by name: [1, T, size], or [1, T, heads, size / heads], whatever made them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._made: dict[str, list[Var]] = {}

    def __setitem__(self, name: str, value: Var) -> None:
        self._made[name] = [value]

    def __getitem__(self, name: str) -> Var:
        """Return the value in the form in which it was made."""
        return self._made[name][0]

    def size(self, name: str) -> int:
        """Return how many numbers a token has."""
        _, _, *rest = self[name].shape
        return int(np.prod(rest))

    def flat(self, name: str) -> Var:
        """Return the value as [1, T, size]; ids as they are."""
        return self._shaped(name, (1, self._count, self.size(name))) if self[name].rank > 2 else self[name]

    def heads(self, name: str, count: int) -> Var:
        """Return the value as [1, T, count, size / count]."""
        return self._shaped(name, (1, self._count, count, self.size(name) // count))

    def _shaped(self, name: str, shape: tuple[int, ...]) -> Var:
        for made in self._made[name]:
            if tuple(made.shape) == shape:
                return made
        self._made[name].append(mb.reshape(x=self[name], shape=list(shape)))
        return self._made[name][-1]
